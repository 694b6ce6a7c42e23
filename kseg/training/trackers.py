"""Callbacks that log a run to MLflow or Weights & Biases, which are imported only when used."""

import json
import os
import time

from kseg import config as config_module
from kseg import files
from kseg.errors import UserError
from kseg.json_text import parse_json
from kseg.training.callbacks import Callback

_PARAMETERS = 100  # Largest number in a request.


def _numbers(evaluation):
    """Collects the scores and losses of an evaluation: dict from name to float."""
    scores = evaluation.scores
    values = {
        "mean_iou": scores.mean_iou,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
    }
    values |= {f"loss/{name}": value for name, value in evaluation.losses.items()}
    return {f"evaluation/{name}": float(value) for name, value in values.items()}


def _training_numbers(values):
    plain = ("learning_rate", "images_per_second")
    return {f"train/{n}" if n in plain else f"train/loss/{n}": v for n, v in values.items()}


def _parameters(config):
    """Flattens the resolved config into a dict."""
    return config_module.flatten(config.model_dump(mode="json"))


def _read_ids(file):
    """Reads the ids of a tracked run from the run's folder: a dict, empty for a new run."""
    if not file.exists():
        return {}
    try:
        known = parse_json(file.read_text())
        return {"run_id": str(known["run_id"]), "uri": known.get("uri")}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged. Delete it to track a new run") from None


class MLflow(Callback):
    """Logs parameters, metrics and the resolved config to an MLflow tracking store.

    The id of the tracked run is kept in the run's folder, so that a resumed run continues
    it, unless `uri` has changed.

    Args:
        uri: str, URI of the store: `file:///folder`, `sqlite:///file` or the address of a server;
            None: the folder `mlruns` beside the run's folder.
        experiment: str, the MLflow experiment that the run belongs to.

    Raises:
        UserError: if MLflow is not installed.
    """

    def __init__(self, uri=None, experiment="kseg"):
        try:
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise UserError(
                f"Logging to MLflow needs its package ({error}): pip install 'kseg[mlflow]'"
            ) from None
        self._client_class, self._metric, self._parameter = MlflowClient, Metric, Param
        self._uri = uri
        self._experiment = experiment
        self._client = self._id = None

    def on_start(self, run, step):
        """Creates the tracked run, or continues the one recorded in the run's folder."""
        uri = self._uri or (run.path.resolve().parent / "mlruns").as_uri()
        if uri.startswith("file:"):
            # Required by MLflow 3.7 and later, which no longer extend the file store.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = self._client_class(tracking_uri=uri)
        file = run.path / "tracking" / "mlflow.json"
        known = _read_ids(file)
        if known.get("uri") == uri:
            self._id = known["run_id"]
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self._experiment)
        experiment_id = (
            found.experiment_id if found else self._client.create_experiment(self._experiment)
        )
        self._id = self._client.create_run(experiment_id, run_name=run.config.name).info.run_id
        values = _parameters(run.config).items()
        parameters = [self._parameter(key, str(value)[:500]) for key, value in values]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._id, params=parameters[start : start + _PARAMETERS])
        self._client.log_text(self._id, run.config.to_json(), "config.json")
        files.write_text(file, json.dumps({"uri": uri, "run_id": self._id}) + "\n")

    def _log(self, step, numbers):
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def on_log(self, step, values):
        """Logs the losses, the learning rate and the speed."""
        self._log(step, _training_numbers(values))

    def on_evaluation(self, step, evaluation):
        """Logs scores and losses."""
        self._log(step, _numbers(evaluation))

    def on_end(self, result):
        """Marks the tracked run as finished."""
        self._client.set_terminated(self._id)


class WandB(Callback):
    """Logs config and metrics to Weights & Biases, by default offline into the run's folder.

    `wandb sync runs/<name>/tracking/wandb/offline-run-*` uploads what was written offline.

    Args:
        project: str.
        mode: `"offline"`, `"online"` or `"disabled"`, as `wandb.init` takes it.

    Raises:
        UserError: if wandb is not installed.
    """

    def __init__(self, project="kseg", mode="offline"):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"Logging to Weights & Biases needs its package ({error}): "
                "pip install 'kseg[wandb]'"
            ) from None
        self._wandb = wandb
        self._project = project
        self._mode = mode
        self._tracked = None

    def on_start(self, run, step):
        """Starts the tracked run, or continues the one recorded in the run's folder."""
        folder = run.path / "tracking"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "wandb.json"
        known = _read_ids(file)
        self._tracked = self._wandb.init(
            project=self._project,
            mode=self._mode,
            name=run.config.name,
            id=known.get("run_id"),
            resume="allow",
            dir=str(folder),
            config=_parameters(run.config),
        )
        files.write_text(file, json.dumps({"run_id": self._tracked.id}) + "\n")

    def on_log(self, step, values):
        """Logs the losses, the learning rate and the speed."""
        self._tracked.log(_training_numbers(values), step=step)

    def on_evaluation(self, step, evaluation):
        """Logs scores and losses."""
        self._tracked.log(_numbers(evaluation), step=step)

    def on_end(self, result):
        """Ends the tracked run, so that everything is written."""
        self._tracked.finish()
