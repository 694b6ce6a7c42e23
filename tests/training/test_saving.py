import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import config
from kseg.runs import Run, checkpoints
from kseg.runs.lock import hold
from kseg.training.build import build_trainer
from kseg.training.saving import Saving, is_better
from kseg.training.watching import FiniteWatch, NonFiniteLossError, NonFiniteWeightsError
from tests.training.tiny import CLASSES, create_run, tiny_network  # noqa: F401 - a fixture.

pytestmark = pytest.mark.usefixtures("tiny_network")


class Silent:
    """A progress that shows nothing."""

    def working(self, what):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@pytest.fixture
def run(tmp_path):
    return create_run(tmp_path / "run", keep_checkpoints=2)


def state_of(value):
    return {"model/kernel": keras.Variable(np.full(3, value, "float32"), name="kernel")}


def test_what_one_saves_the_next_restores(run, capsys):
    with hold(run.path) as lock:
        first = Saving(run, state_of(1.0), lock)
        assert first.restore() is None and first.saved_step is None
        first.initial_weights = "random"
        first.save_best(3, 0.5, state_of(1.0))
        first.save_best(4, 0.25, state_of(2.0))
        for step in (3, 4, 5):
            first.save(step, Silent())
        assert run.checkpoint_steps() == [4, 5]  # Two are kept.
        state = state_of(0.0)
        second = Saving(run, state, lock)
        assert second.restore() == second.saved_step == 5
    np.testing.assert_array_equal(state["model/kernel"], np.ones(3, "float32"))
    assert second.best == {"mean_iou": 0.5, "step": 3} and second.initial_weights == "random"
    assert "resuming from step 5" in capsys.readouterr().out
    with np.load(run.checkpoint("best")) as file:
        assert json.loads(str(file["meta.json"]))["step"] == 3


def test_a_worker_without_the_lock_writes_nothing(run):
    worker = Saving(run, state_of(1.0), None)
    worker.save(3, Silent())
    assert worker.saved_step == 3 and run.checkpoint_steps() == []


@pytest.mark.parametrize(
    "score, best, expected",
    [
        (np.nan, None, False),
        (None, 0.5, False),
        (np.nan, 0.5, False),
        (0.5, 0.5, True),
        (0.4, 0.5, False),
        (0.0, None, True),
    ],
)
def test_the_newest_of_the_best_scores_is_kept(score, best, expected):
    assert is_better(score, best) is expected


def test_the_terms_of_a_step_are_examined_with_the_next_one(run):
    watch = FiniteWatch(run, state_of(1.0), Saving(run, state_of(1.0), None))
    watch.check(1, {"loss": 2.0})
    watch.check(2, {"loss": np.inf, "contrast": np.nan})
    with pytest.raises(NonFiniteLossError, match=r"At step 2 contrast is nan .no checkpoint yet"):
        watch.flush()


def test_weights_are_examined_at_once(run):
    saving = Saving(run, state_of(np.nan), None)
    watch = FiniteWatch(run, state_of(np.nan), saving)
    saving.save(6, Silent())
    with pytest.raises(NonFiniteWeightsError, match="the checkpoint of step 6 is intact"):
        watch.check_weights(7)


def test_nan_anywhere_in_the_state_stops_the_run(tmp_path):
    """In moving statistics, averages, momenta and memory banks too, in lower precision."""
    values = create_run(tmp_path / "unused").config.model_dump()
    values["contrast"] = [
        {"name": "region_contrast", "capacity": 4, "storage": "bfloat16"},
        {"name": "pixel_contrast", "memory": "both", "pixel_capacity": 4, "region_capacity": 4},
    ]
    values["train"] |= {"precision": "mixed_bfloat16", "ema": {"decay": 0.9}}
    run = Run.create(tmp_path / "run", config.parse(values, source="test"), CLASSES)
    state = checkpoints.training_variables(build_trainer(run, tf.distribute.get_strategy()))
    watch = FiniteWatch(run, state, Saving(run, state, None))
    watch.check_weights(1)
    kinds = [
        "model/.*moving_variance",
        "model/.*beta",
        "ema/.*moving_mean",
        "ema/.*kernel",
        "optimizer/.*momentum",
        "objective/region_contrast/.*entries",
        "objective/pixel_contrast/.*entries",
    ]
    for kind in kinds:
        name = next(name for name in state if re.fullmatch(kind, name))
        before = np.array(keras.ops.cast(state[name], "float32"))
        broken = before.copy()
        broken.flat[-1] = np.nan
        state[name].assign(broken)
        with pytest.raises(NonFiniteWeightsError, match=f"After step 2 '{re.escape(name)}' of"):
            watch.check_weights(2)
        state[name].assign(before)
