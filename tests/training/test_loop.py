import json
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.errors import UserError
from kseg.runs import Run
from kseg.training import loop
from tests.training.tiny import (
    batch,
    create_run,
    evaluation_batches,
    tiny_network,  # noqa: F401 - a fixture.
    training_batches,
)

pytestmark = pytest.mark.usefixtures("tiny_network")


def train(run, batches=training_batches):
    return loop.train(run, batches, evaluation_batches)


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "meta.json"}


def scalars(folder):
    """{tag: {step: value}} of all events in a folder."""
    found = {}
    for path in sorted(folder.glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = (
                    float(tf.make_ndarray(value.tensor)) if value.tensor.dtype == 1 else None
                )
    return found


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, capsys):
    whole = create_run(tmp_path / "whole")
    result = train(whole)
    assert whole.checkpoint_steps() == [2, 4]
    # As if killed after step 2: what came later is not there.
    shutil.copytree(whole.path, tmp_path / "stopped")
    (tmp_path / "stopped/checkpoints/step-00000004.npz").unlink()
    stopped = create_run(tmp_path / "stopped")
    capsys.readouterr()
    assert train(stopped) == result
    assert "going on from step 2 of 4" in capsys.readouterr().out
    one, two = (arrays(run.checkpoint("latest")) for run in (whole, stopped))
    assert one.keys() == two.keys()
    assert any("momentum" in name for name in one) and any("seed" in name for name in one)
    for name in one:
        assert np.array_equal(one[name], two[name]), name

    # What the run wrote meanwhile.
    events = scalars(whole.path / "tensorboard/train")
    assert set(events["loss/multi_scale/same_scale"]) == {1, 2, 3, 4}
    assert {"loss/loss", "loss/cross_entropy", "loss/auxiliary", "learning_rate"} <= set(events)
    assert set(events["images_per_second"]) == {2, 3, 4}
    events = scalars(whole.path / "tensorboard/evaluation")
    assert set(events["mean_iou"]) == {2, 4}
    assert {"iou/car", "confusion_matrix", "panel/0"} <= set(events)
    best = result["best_step"]
    np.testing.assert_allclose(events["mean_iou"][best], result["best_mean_iou"], rtol=1e-6)

    # A finished run trains no further, and its best weights load without projectors.
    assert train(create_run(tmp_path / "whole")) == result
    segmenter = Run.open(whole.path).segmenter("best")
    assert not any("embedding" in weight.path for weight in segmenter.weights)


def test_learning_rate_factors_reach_the_optimizer(tmp_path):
    run = create_run(
        tmp_path / "run",
        optimizer={"learning_rate_factors": {"backbone": 0.0, "projectors": 0.0}},
        checkpoint_every=1,
        steps=2,
    )
    train(run)
    first, last = (arrays(run.checkpoint(step)) for step in (1, 2))
    for name in first:
        if not name.startswith("model/") or "moving_" in name:
            continue
        kept = name.startswith(("model/stem", "model/stage_", "model/embedding_"))
        assert np.array_equal(first[name], last[name]) == kept, name


def test_an_unknown_part_stops_before_the_first_step(tmp_path):
    run = create_run(tmp_path / "run", optimizer={"learning_rate_factors": {"neck": 2.0}})
    with pytest.raises(UserError, match=r"Received: 'neck'\. Parts: backbone, head, projectors"):
        train(run)
    assert run.checkpoint_steps() == []


def test_a_non_finite_loss_stops_the_run_and_saves_nothing(tmp_path, monkeypatch):
    run = create_run(tmp_path / "run", checkpoint_every=1)
    contrast = MultiScaleContrast.contrast

    def explode(self, outputs, labels):
        terms, found = contrast(self, outputs, labels)
        broken = tf.reduce_all(labels[:, 4:] == tf.constant(batch(2)["label"])[:, 4:])
        terms["cross_scale"] = tf.where(broken, np.inf, terms["cross_scale"])
        return terms, found

    monkeypatch.setattr(MultiScaleContrast, "contrast", explode)
    with pytest.raises(loop.NonFiniteLossError) as error:
        train(run)
    message = str(error.value)
    assert "At step 3 multi_scale/cross_scale is inf" in message
    assert "the checkpoint of step 2 is intact" in message
    assert run.checkpoint_steps() == [1, 2]


def test_a_stop_signal_saves_the_state(tmp_path):
    run = create_run(tmp_path / "run", steps=50, checkpoint_every=50, evaluate_every=50)

    def batches(start_step):
        spec = training_batches(start_step).element_spec

        def generate():
            for number in range(50):
                if number == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch(number)

        return tf.data.Dataset.from_generator(generate, output_signature=spec)

    with pytest.raises(loop.Interrupted, match=r"stopped at step \d+; the same command goes on"):
        train(run, batches)
    (step,) = run.checkpoint_steps()
    assert 1 <= step < 50
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_does_not_fit_the_devices_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"at most the number of CPUs here, 2. Received: 3"):
        train(create_run(tmp_path / "a", devices=3))
    with pytest.raises(UserError, match="XLA does not compile"):
        train(create_run(tmp_path / "b", devices=2, jit_compile=True))
    odd = create_run(tmp_path / "c", devices=2)
    odd.config = odd.config.model_copy(
        update={"data": odd.config.data.model_copy(update={"batch_size": 3})}
    )
    with pytest.raises(UserError, match=r"divisible by the 2 devices. Received: 3"):
        train(odd)


def test_all_devices_are_used_by_default(tmp_path, monkeypatch):
    seen = []

    def build_trainer(run, strategy):
        seen.append(strategy)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "build_trainer", build_trainer)
    with pytest.raises(KeyboardInterrupt):
        train(create_run(tmp_path / "run", devices=None))
    assert isinstance(seen[0], tf.distribute.MirroredStrategy)
    assert seen[0].num_replicas_in_sync == 2


def test_old_checkpoints_are_removed_but_the_best(tmp_path):
    run = create_run(
        tmp_path / "run", steps=3, checkpoint_every=1, keep_checkpoints=1, evaluate_every=2
    )
    train(run)
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert names == ["best.npz", "step-00000003.npz"]
    with np.load(run.checkpoint("best")) as file:
        assert json.loads(str(file["meta.json"]))["step"] in (2, 3)


def test_two_devices_train_and_evaluate(tmp_path, monkeypatch, mirrored):
    monkeypatch.setattr(loop, "build_strategy", lambda devices: mirrored)
    run = create_run(tmp_path / "run", devices=2, steps=2)
    result = train(run)
    assert 0 <= result["best_mean_iou"] <= 1
    assert run.checkpoint_steps() == [2]
    # The weights that one device reads back are those that two trained.
    best, latest = (arrays(run.checkpoint(which)) for which in ("best", "latest"))
    assert all(np.array_equal(best[name], latest[name]) for name in best)
