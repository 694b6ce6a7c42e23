"""The trackers, against stand-ins with the calls of mlflow and wandb.

Neither is a light package (117 and 100 MB with what they need), so the tests do not install them:
the stand-ins accept the calls and arguments that the callbacks may use of them, and nothing else.
"""

import json
import sys
import types

import pytest

from kseg.errors import UserError
from kseg.training import loop
from kseg.training.trackers import MLflow, WandB
from tests.training.tiny import (
    create_quick_run,
    evaluation_batches,
    tiny_network,  # noqa: F401 - a fixture.
    training_batches,
)

pytestmark = pytest.mark.usefixtures("tiny_network")


class Client:
    """`mlflow.tracking.MlflowClient` over a dict."""

    runs: dict = {}  # noqa: RUF012 - one store for all clients.

    def __init__(self, tracking_uri=None):
        self.uri = tracking_uri

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id="7") if self.runs else None

    def create_experiment(self, name):
        return "7"

    def create_run(self, experiment_id, run_name=None):
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = {"uri": self.uri, "name": run_name, "parameters": {}, "metrics": {}}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status=None, name=None):
        self.runs[run_id]["status"] = status

    def log_batch(self, run_id, metrics=(), params=()):
        run = self.runs[run_id]
        assert len(params) <= 100  # As MLflow demands.
        for key, value in params:
            assert key not in run["parameters"]
            run["parameters"][key] = value
        for key, value, timestamp, step in metrics:
            assert isinstance(value, float) and isinstance(timestamp, int)
            run["metrics"].setdefault(key, {})[step] = value

    def log_text(self, run_id, text, artifact_file):
        self.runs[run_id][artifact_file] = text

    def set_terminated(self, run_id):
        self.runs[run_id]["status"] = "FINISHED"


@pytest.fixture
def mlflow(monkeypatch):
    tracking = types.ModuleType("mlflow.tracking")
    tracking.MlflowClient = Client
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda key, value, timestamp, step: (key, value, timestamp, step)
    entities.Param = lambda key, value: (key, value)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    Client.runs.clear()
    return Client.runs


class WandBRun:
    """The result of `wandb.init`."""

    def __init__(self, id):
        self.id = id or "fresh"
        self.logged = {}
        self.finished = False

    def log(self, data, step=None):
        self.logged.setdefault(step, {}).update(data)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    module, started = types.ModuleType("wandb"), []

    def init(*, project, mode, name, id, resume, dir, config):
        started.append(
            (WandBRun(id), {"project": project, "mode": mode, "dir": dir, "config": config})
        )
        return started[-1][0]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return started


def train(folder, name, **arguments):
    entry = {"name": f"kseg.training.trackers:{name}", "arguments": arguments}
    run = create_quick_run(folder, train={"steps": 2, "callbacks": [entry]})
    loop.train(run, training_batches, evaluation_batches)
    return run


def test_mlflow_has_parameters_metrics_and_config(tmp_path, mlflow):
    run = train(tmp_path / "run", "MLflow")
    (tracked,) = mlflow.values()
    assert tracked["uri"] == (tmp_path / "mlruns").as_uri()
    assert (tracked["name"], tracked["status"]) == ("tiny", "FINISHED")
    assert tracked["parameters"]["optimizer.name"] == "sgd"
    assert json.loads(tracked["config.json"])["train"]["steps"] == 2
    assert set(tracked["metrics"]["train/loss/cross_entropy"]) == {1, 2}
    assert set(tracked["metrics"]["train/learning_rate"]) == {1, 2}
    assert set(tracked["metrics"]["evaluation/mean_iou"]) == {2}
    assert set(tracked["metrics"]["evaluation/loss/cross_entropy"]) == {2}
    # Resumed, it is the same tracked run; started over, another.
    (run.path / "checkpoints" / "step-00000002.npz").unlink()
    train(tmp_path / "run", "MLflow")
    assert list(mlflow) == ["run0"]
    # Another store does not have it; a damaged record is named.
    train(tmp_path / "run", "MLflow", uri="http://localhost:1")
    assert [tracked["uri"] for tracked in mlflow.values()][1] == "http://localhost:1"
    (run.path / "tracking" / "mlflow.json").write_text("{")
    with pytest.raises(UserError, match=r"on_start: .*mlflow.json is damaged. Delete it"):
        train(tmp_path / "run", "MLflow")
    type(run).delete(run.path)
    train(tmp_path / "run", "MLflow")
    assert list(mlflow) == ["run0", "run1", "run2"]


def test_wandb_is_offline_in_the_folder_of_the_run(tmp_path, wandb):
    run = train(tmp_path / "run", "WandB", project="cities")
    ((tracked, settings),) = wandb
    assert settings["mode"] == "offline" and settings["project"] == "cities"
    assert settings["dir"] == str(run.path / "tracking")
    assert settings["config"]["train.steps"] == 2
    assert tracked.finished and set(tracked.logged) == {1, 2}
    assert {"train/loss/loss", "evaluation/mean_iou"} <= set(tracked.logged[2])
    train(tmp_path / "run", "WandB")
    assert wandb[1][0].id == "fresh"


@pytest.mark.parametrize("tracker, package", [(MLflow, "mlflow"), (WandB, "wandb")])
def test_a_missing_package_is_one_line(monkeypatch, tracker, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.tracking", None)
    with pytest.raises(UserError, match=rf"pip install 'kseg\[{package}\]'"):
        tracker()
