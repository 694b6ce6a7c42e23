import json
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

from kseg import config
from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.errors import Interrupted, UserError
from kseg.runs import Run
from kseg.segmenters import inference_model
from kseg.training import evaluating, loop
from kseg.training.watching import NonFiniteLossError, NonFiniteWeightsError
from tests.training.tiny import (
    CLASSES,
    batch,
    create_quick_run,
    create_run,
    evaluation_batches,
    tiny_network,  # noqa: F401 - a fixture.
    training_batches,
)

pytestmark = pytest.mark.usefixtures("tiny_network")


def train(run, batches=training_batches):
    return loop.train(run, batches, evaluation_batches)


def quick_run(folder, *, optimizer=None, **train):
    return create_quick_run(folder, train=train, optimizer=optimizer or {})


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


SETTINGS = {
    "plain": {},
    "averaged, with factors": {
        "ema": {"decay": 0.9},
        "optimizer": {"learning_rate_factors": {"backbone": 0.5, "head": 2.0}},
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, capsys, settings):
    whole = create_run(tmp_path / "whole", **settings)
    result = train(whole)
    assert whole.checkpoint_steps() == [2, 4]
    # As if killed after step 2: what came later is not there.
    shutil.copytree(whole.path, tmp_path / "stopped")
    (tmp_path / "stopped/checkpoints/step-00000004.npz").unlink()
    stopped = create_run(tmp_path / "stopped", **settings)
    capsys.readouterr()
    assert train(stopped) == result
    assert "resuming from step 2 of 4" in capsys.readouterr().out
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
    assert train(create_run(tmp_path / "whole", **settings)) == result
    segmenter = Run.open(whole.path).segmenter("best")
    assert not any("embedding" in weight.path for weight in segmenter.weights)


def test_averaged_weights_are_evaluated_kept_and_loaded(tmp_path):
    decay = 0.4  # Reached at the seventh step: (7 - 1) / (7 + 8).
    run = quick_run(
        tmp_path / "run",
        ema={"decay": decay},
        steps=8,
        checkpoint_every=1,
        keep_checkpoints=8,
        evaluate_every=8,
        optimizer={"learning_rate": 0.1},
    )
    train(run)
    states = [arrays(run.checkpoint(step)) for step in range(1, 9)]
    paths = [name.removeprefix("ema/") for name in states[0] if name.startswith("ema/")]
    assert len(paths) == sum(name.startswith("model/") for name in states[0])
    assert any(path.endswith("moving_variance") for path in paths)
    for path in paths:
        average = states[0][f"model/{path}"].astype("float64")
        for step, state in enumerate(states[1:], start=2):
            now = min(decay, (step - 1) / (step + 8))
            average = now * average + (1 - now) * state[f"model/{path}"]
            np.testing.assert_allclose(state[f"ema/{path}"], average, rtol=1e-4, atol=1e-6)
    # What was evaluated is kept as the best, and is what a run loads, of the last step too.
    best = arrays(run.checkpoint("best"))
    assert set(best) == {f"model/{path}" for path in paths}
    for path in paths:
        assert np.array_equal(best[f"model/{path}"], states[-1][f"ema/{path}"])
    opened = Run.open(run.path)
    for which in ("best", "latest"):
        for weight in opened.segmenter(which).weights:
            np.testing.assert_array_equal(weight.numpy(), best[f"model/{weight.path}"])


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
        broken = tf.reduce_all(labels[:, 4:] == tf.cast(batch(2)["label"][:, 4:], labels.dtype))
        terms["cross_scale"] = tf.where(broken, np.inf, terms["cross_scale"])
        return terms, found

    monkeypatch.setattr(MultiScaleContrast, "contrast", explode)
    with pytest.raises(NonFiniteLossError) as error:
        train(run)
    message = str(error.value)
    assert "At step 3 multi_scale/cross_scale is inf" in message
    assert "the checkpoint of step 2 is intact" in message
    assert run.checkpoint_steps() == [1, 2]


def test_a_stop_signal_saves_the_state(tmp_path):
    run = quick_run(tmp_path / "run", steps=50, checkpoint_every=50, evaluate_every=50)

    def batches(start_step):
        spec = training_batches(start_step).element_spec

        def generate():
            for number in range(50):
                if number == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch(number)

        return tf.data.Dataset.from_generator(generate, output_signature=spec)

    with pytest.raises(Interrupted, match=r"stopped at step \d+; the same command resumes"):
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
    with pytest.raises(UserError, match=r"divisible by .* number of devices, 2. Received: 3"):
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
    run = quick_run(
        tmp_path / "run", steps=3, checkpoint_every=1, keep_checkpoints=1, evaluate_every=2
    )
    train(run)
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert names == ["best.npz", "step-00000003.npz"]
    with np.load(run.checkpoint("best")) as file:
        assert json.loads(str(file["meta.json"]))["step"] in (2, 3)


def test_two_devices_train_and_evaluate(tmp_path):
    run = quick_run(tmp_path / "run", devices=2, steps=2)
    result = train(run)
    assert 0 <= result["best_mean_iou"] <= 1
    assert run.checkpoint_steps() == [2]
    # The weights that one device reads back are those that two trained.
    best, latest = (arrays(run.checkpoint(which)) for which in ("best", "latest"))
    assert all(np.array_equal(best[name], latest[name]) for name in best)


def break_after(monkeypatch, step, path):
    """Makes a step's update put NaN into a weight, while its loss is finite."""
    build_step = loop.build_step

    def build(trainer, *arguments, **options):
        train_step = build_step(trainer, *arguments, **options)
        variable = next(v for v in trainer.segmenter.weights if v.path == path)

        def broken(data):
            logs = train_step(data)
            if int(trainer.optimizer.iterations) == step:
                variable.assign(variable + np.nan)
            return logs

        return broken

    monkeypatch.setattr(loop, "build_step", build)


@pytest.mark.parametrize(
    "weight", ["stem/convolution/kernel", "stem/normalization/moving_variance"]
)
@pytest.mark.parametrize("at_the_end", [True, False])
def test_weights_that_are_not_finite_are_never_written(tmp_path, monkeypatch, weight, at_the_end):
    last = 3 if at_the_end else 5
    run = quick_run(tmp_path / "run", steps=last, checkpoint_every=1, evaluate_every=2)
    with monkeypatch.context() as patch:
        break_after(patch, 3, weight)
        with pytest.raises(NonFiniteWeightsError) as error:
            train(run)
    message = str(error.value)
    assert f"After step 3 'model/{weight}' of " in message and "\n" not in message
    assert "the checkpoint of step 2 is intact" in message
    assert f"model.weights={run.path}/checkpoints/step-00000002.npz" in message
    assert run.checkpoint_steps() == [1, 2]
    for file in (run.path / "checkpoints").iterdir():
        assert all(np.isfinite(value).all() for value in arrays(file).values())
    # Without the fault the same run goes on from there.
    assert train(run)["step"] == last


def test_a_checkpoint_of_nans_is_left_for_the_one_before(tmp_path, capsys):
    """Earlier versions wrote them."""
    run = quick_run(tmp_path / "run", checkpoint_every=1)
    result = train(run)
    path = run.checkpoint(4)
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    content["model/stem/convolution/kernel"] += np.nan
    np.savez(path, **content)
    with pytest.raises(UserError, match=r"'model/stem/convolution/kernel' of \d+ arrays are not"):
        run.segmenter("latest")
    capsys.readouterr()
    assert train(run) == result
    out, err = capsys.readouterr()
    assert "resuming from step 3 of 4" in out and "step-00000004.npz" in err
    assert np.isfinite(arrays(path)["model/stem/convolution/kernel"]).all()


def test_a_score_that_is_nan_is_never_the_best(tmp_path, capsys, monkeypatch):
    """The first evaluations see no label; of the others, the newest of the best is kept.

    The second sees black images, for which logits are NaN here.
    """

    def with_nans(segmenter):
        model = inference_model(segmenter)

        def call(images, training):
            nan_if_black = 0 * tf.math.log(tf.reduce_mean(tf.cast(images, "float32")))
            return model(images, training=training) + nan_if_black

        return call

    monkeypatch.setattr(evaluating, "inference_model", with_nans)
    run = quick_run(tmp_path / "run", steps=3, evaluate_every=1)
    seen = []

    def evaluation():
        seen.append(None)
        dataset = evaluation_batches()
        if len(seen) == 2:
            return dataset.map(lambda b: {**b, "image": tf.zeros_like(b["image"])})
        if len(seen) > 1:
            return dataset
        return dataset.map(lambda b: {**b, "label": tf.fill(tf.shape(b["label"]), np.uint8(255))})

    result = loop.train(run, training_batches, evaluation)
    assert result["best_step"] in (2, 3) and result["best_mean_iou"] > 0
    out = capsys.readouterr().out
    assert "none is the best" in out
    assert "validation loss nan\nwarning: the logits of 3 of 3 images are NaN or infinite" in out
    assert out.count("warning") == 1


def test_the_checkpoints_of_another_config_are_refused(tmp_path):
    """An old process continues in a folder that was restarted."""
    other = quick_run(tmp_path / "other", clip_norm=1)
    train(other)
    run = quick_run(tmp_path / "run")
    (run.path / "checkpoints").mkdir()
    shutil.copy(other.checkpoint(2), run.path / "checkpoints")
    with pytest.raises(UserError, match=r"step-00000002.npz is of others: train.clip_norm was 1"):
        train(run)
    shutil.copy(other.checkpoint("best"), run.path / "checkpoints")
    with pytest.raises(UserError, match=r"best.npz is of others"):
        run.segmenter("best")


def test_a_run_that_lost_its_folder_writes_no_more(tmp_path, monkeypatch):
    run = quick_run(tmp_path / "run", checkpoint_every=1, evaluate_every=100)

    def batches(start_step):
        lock = run.path / "train.lock"
        lock.write_text(json.dumps({"host": "other", "process": 7, "token": "another"}))
        return training_batches(start_step)

    with pytest.raises(UserError, match="process 7 on other took it over"):
        train(run, batches)
    assert run.checkpoint_steps() == []


def test_what_a_bank_in_bfloat16_remembers_is_resumed(tmp_path):
    values = create_run(tmp_path / "unused").config.model_dump()
    bank = {"name": "region_contrast", "capacity": 4, "storage": "bfloat16"}
    settings = config.parse({**values, "contrast": [bank]}, source="test")
    run = Run.create(tmp_path / "run", settings, CLASSES)
    result = train(run)
    expected = run.checkpoint(4).read_bytes()
    run.checkpoint(4).unlink()
    assert train(run) == result
    assert run.checkpoint(4).read_bytes() == expected
