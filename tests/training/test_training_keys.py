"""Keys of the section `train` in whole runs: what they do, and that a resumed run does the same."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.errors import UserError
from kseg.training import loop
from kseg.training.build import build_trainer
from tests.training.tiny import (
    create_quick_run,
    evaluation_batches,
    tiny_network,  # noqa: F401 - a fixture.
    training_batches,
)

pytestmark = pytest.mark.usefixtures("tiny_network")


def train(run):
    return loop.train(run, training_batches, evaluation_batches)


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "meta.json"}


def assert_same_arrays(one, two):
    one, two = arrays(one), arrays(two)
    assert one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name]), name


RESUMED = {
    "parts, frozen norms, cosine": {
        "train": {"accumulate": 2},
        "model": {"freeze": ["batch_norms"]},
        "schedule": {"name": "cosine", "warmup_steps": 1},
    },
    "float16": {"train": {"precision": "mixed_float16"}},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_resumed_equals_uninterrupted(tmp_path, settings):
    run = create_quick_run(tmp_path / "run", **settings)
    result = train(run)
    shutil.copy(run.checkpoint(4), tmp_path / "whole.npz")
    run.checkpoint(4).unlink()
    assert train(create_quick_run(tmp_path / "run", **settings)) == result
    assert_same_arrays(tmp_path / "whole.npz", run.checkpoint(4))


def test_a_finished_run_trains_on_and_deletes_nothing(tmp_path, capsys):
    keys = {"steps": 2, "keep_checkpoints": 1, "checkpoint_every": 1, "evaluate_every": 9}
    run = create_quick_run(tmp_path / "run", train=keys)
    train(run)
    first = run.checkpoint(2).read_bytes()
    longer = create_quick_run(tmp_path / "run", train={**keys, "restarts": [3]})
    assert train(longer)["step"] == 5
    assert "resuming from step 2 of 5" in capsys.readouterr().out
    assert run.checkpoint(2).read_bytes() == first  # Of the end of a cycle: kept.
    assert run.checkpoint_steps() == [2, 5]
    # The same as restarts that were there from the first step on.
    whole = create_quick_run(tmp_path / "whole", train={**keys, "restarts": [3]})
    assert train(whole)["step"] == 5
    assert_same_arrays(whole.checkpoint(5), longer.checkpoint(5))
    # Appended to once more, also where the best weights are of the config before.
    assert longer.segmenter("best")
    again = create_quick_run(tmp_path / "run", train={**keys, "restarts": [3, 1]})
    assert train(again)["step"] == 6
    assert again.checkpoint_steps() == [2, 5, 6]


def test_restarts_that_change_what_was_trained_are_one_line(tmp_path):
    run = create_quick_run(tmp_path / "run", train={"steps": 2, "restarts": [1]})
    train(run)
    for restarts in ([], [2], [2, 1]):
        with pytest.raises(UserError, match=r"can be appended to.*was \[1\], is") as error:
            create_quick_run(tmp_path / "run", train={"steps": 2, "restarts": restarts})
        assert "train.restarts=[1]" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"leave `train.steps` and use .*train.restarts=\[1,4\]"):
        create_quick_run(tmp_path / "run", train={"steps": 6, "restarts": [1]})


def test_float16_scales_the_loss_and_keeps_weights_in_float32(tmp_path):
    run = create_quick_run(tmp_path / "run", train={"precision": "mixed_float16", "clip_norm": 1})
    trainer = build_trainer(run, tf.distribute.get_strategy())
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert {weight.dtype for weight in trainer.segmenter.weights} == {"float32"}
    names = [v.path for v in trainer.optimizer.variables]
    assert any("dynamic_scale" in name for name in names)
