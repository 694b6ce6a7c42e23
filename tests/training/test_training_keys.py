"""Keys of the section `train` in whole runs: what they do, and that a resumed run does the same."""

import json
import shutil
import typing

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import config
from kseg.config import schema
from kseg.errors import UserError
from kseg.runs import Run
from kseg.segmenters import inference_model
from kseg.training import loop
from kseg.training.build import build_trainer
from kseg.training.callbacks import Callback
from kseg.training.patience import Patience
from kseg.training.profiling import Profiling
from tests.training.test_loop import scalars
from tests.training.tiny import (
    CLASSES,
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


def test_validation_losses_are_logged(tmp_path, capsys):
    run = create_quick_run(
        tmp_path / "run",
        train={"steps": 2, "evaluate_every": 1},
        losses={
            "lovasz": {"weight": 0.5},
            "dice": {"weight": 0.5},
            "focal": {"weight": 0.25},
            "ohem": {"weight": 2.0, "min_kept": 9},
        },
    )
    train(run)
    (folder,) = (run.path / "tensorboard").glob("evaluation")
    events = scalars(folder)
    weights = {"cross_entropy": 1.0, "dice": 0.5, "focal": 0.25, "ohem": 2.0}
    found = {tag for tag in events if tag.startswith("loss/")}
    assert found == {"loss/loss", *(f"loss/{name}" for name in weights)}
    for step in (1, 2):
        expected = sum(w * events[f"loss/{name}"][step] for name, w in weights.items())
        assert events["loss/loss"][step] == pytest.approx(expected, rel=1e-5)
    out = capsys.readouterr().out
    assert f"validation loss {events['loss/loss'][2]:.4f} = ce " in out
    # The last weights score as Keras' own cross-entropy says.
    model = inference_model(run.segmenter("latest"))
    pixels = []
    for batch in evaluation_batches():
        labels = batch["label"].numpy().astype("int32")
        logits = tf.nn.log_softmax(model(batch["image"], training=False)).numpy()
        valid = labels < 3
        pixels.append(-logits[valid][np.arange(valid.sum()), labels[valid]])
    expected = np.concatenate(pixels).mean()
    assert events["loss/cross_entropy"][2] == pytest.approx(expected, rel=1e-4)


def test_patience_ends_a_run_that_no_longer_gets_better(tmp_path, capsys):
    keys = {
        "steps": 4,
        "evaluate_every": 1,
        "checkpoint_every": 1,
        "keep_checkpoints": 9,
        "patience": {"evaluations": 2, "watch": "loss", "min_change": 1.0},
    }
    run = create_quick_run(tmp_path / "run", train=keys)
    result = train(run)
    assert result["step"] == 3  # The first evaluation is the best of all, two more are not better.
    ended = "training ends at step 3: no better loss than"
    assert ended in capsys.readouterr().out
    # Evaluations before a stop count.
    last = run.checkpoint(3).read_bytes()
    run.checkpoint(3).unlink()
    assert train(run) == result
    assert run.checkpoint(3).read_bytes() == last
    # The same command trains no further; without patience it does.
    capsys.readouterr()
    assert train(run) == result
    assert ended in capsys.readouterr().out
    more = create_quick_run(tmp_path / "run", train={**keys, "patience": None})
    assert train(more)["step"] == 4


def test_patience_by_hand():
    settings = schema.Patience(evaluations=2, min_change=0.1)
    patience = Patience(settings)
    seen = []
    for mean_iou in (float("nan"), 0.3, 0.35, 0.45, 0.2, float("nan")):
        patience.evaluated(mean_iou, 0.0)
        seen.append((patience.state["best"], patience.state["evaluations"]))
    assert seen == [(None, 1), (0.3, 0), (0.3, 1), (0.45, 0), (0.45, 1), (0.45, 2)]
    assert patience.is_over
    lower = Patience(schema.Patience(evaluations=2, watch="loss"))
    seen = []
    for loss in (2.0, 1.5, 1.5, 1.0, float("nan"), 3.0):
        lower.evaluated(0.0, loss)
        seen.append((lower.state["best"], lower.state["evaluations"]))
    assert seen == [(2.0, 0), (1.5, 0), (1.5, 1), (1.0, 0), (1.0, 1), (1.0, 2)]
    # A checkpoint restores it, unless another value is watched now.
    again = Patience(schema.Patience(evaluations=5, watch="loss"))
    again.restore(lower.state)
    assert again.state == lower.state
    earlier = Patience(schema.Patience(evaluations=5, watch="loss"))
    earlier.restore({"best": 1.0, "evaluations": 2})  # Of a version that did not say what.
    assert earlier.state == lower.state
    other = Patience(settings)
    other.restore(lower.state)
    assert (other.state["best"], other.state["evaluations"]) == (None, 0)
    never = Patience(None)
    never.evaluated(0.0, 0.0)
    assert not never.is_over


class Recorder(Callback):
    """Appends what it is called with to a list."""

    seen: typing.ClassVar[list] = []

    def __init__(self, tag="x"):
        self.tag = tag

    def on_start(self, run, step):
        self.seen.append((self.tag, "start", run.config.name, step))

    def on_log(self, step, values):
        self.seen.append((self.tag, "log", step, sorted(values)))

    def on_evaluation(self, step, evaluation):
        self.seen.append((self.tag, "evaluation", step, sorted(evaluation.losses)))

    def on_checkpoint(self, step, path):
        self.seen.append((self.tag, "checkpoint", step, path.exists()))

    def on_end(self, result):
        self.seen.append((self.tag, "end", result["step"]))


class Broken(Callback):
    def on_log(self, step, values):
        raise RuntimeError("the server\nis gone")


def not_a_callback():
    return 3


HERE = "tests.training.test_training_keys"


def callback(name, **arguments):
    return {"name": f"{HERE}:{name}", "arguments": arguments}


def test_callbacks_are_called_at_each_event(tmp_path):
    keys = {"steps": 2, "log_every": 2, "evaluate_every": 2, "checkpoint_every": 2}
    entries = [callback("Recorder"), callback("Recorder", tag="y")]
    run = create_quick_run(tmp_path / "run", train={**keys, "callbacks": entries})
    Recorder.seen.clear()
    train(run)
    logged = ["cross_entropy", "learning_rate", "loss"]
    expected = [
        ("start", "tiny", 0),
        ("log", 1, logged),
        ("log", 2, sorted([*logged, "images_per_second"])),
        ("evaluation", 2, ["cross_entropy", "loss"]),
        ("checkpoint", 2, True),
        ("end", 2),
    ]
    assert Recorder.seen == [(tag, *event) for event in expected for tag in "xy"]
    # They are no part of what is learned: a run may be resumed without them.
    assert train(create_quick_run(tmp_path / "run", train=keys))["step"] == 2


def test_two_devices_obey_the_same_keys(tmp_path, monkeypatch):
    """The length, its restart, patience, averaged weights, frozen parts and events of a run."""
    seen, latest = {}, {}
    for devices in (1, 2):
        keys = {
            "devices": devices,
            "steps": 2,
            "restarts": [4],
            "checkpoint_every": 1,
            "evaluate_every": 1,
            "ema": {"decay": 0.5},
            "patience": {"evaluations": 2, "watch": "loss", "min_change": 1.0},
            "callbacks": [callback("Recorder")],
        }
        run = create_quick_run(
            tmp_path / str(devices), train=keys, model={"freeze": ["batch_norms"]}
        )
        Recorder.seen.clear()
        assert train(run)["step"] == 3
        seen[devices] = [*Recorder.seen, run.checkpoint_steps()]
        latest[devices] = arrays(run.checkpoint("latest"))
    assert seen[1] == seen[2]
    assert latest[1].keys() == latest[2].keys()
    for name, value in latest[1].items():
        np.testing.assert_allclose(latest[2][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_callback_that_fails_ends_the_run_with_one_line(tmp_path):
    run = create_quick_run(tmp_path / "run", train={"callbacks": [callback("Broken")]})
    with pytest.raises(UserError, match=r"Broken' failed in on_log: RuntimeError: the server is"):
        train(run)


@pytest.mark.parametrize(
    "entry, message",
    [
        (callback("Missing"), "has no 'Missing'"),
        ({"name": "no_such_module:Thing"}, "no_such_module cannot: ModuleNotFoundError"),
        (callback("Recorder", colour=1), r"Recorder' of `train.callbacks`: TypeError: .*colour"),
        (callback("not_a_callback"), "must make a kseg.training.callbacks.Callback, makes"),
        ({"name": "collections:OrderedDict"}, "it must be a kseg.training.callbacks.Callback, is"),
    ],
)
def test_what_is_no_callback_is_one_line(tmp_path, entry, message):
    run = create_quick_run(tmp_path / "run", train={"callbacks": [entry]})
    with pytest.raises(UserError, match=message) as error:
        train(run)
    assert "\n" not in str(error.value)
    assert run.checkpoint_steps() == []


def test_steps_are_profiled(tmp_path):
    run = create_quick_run(tmp_path / "run", train={"steps": 3, "profile": [2, 2]})
    train(run)
    found = list((run.path / "tensorboard/train/plugins/profile").rglob("*.xplane.pb"))
    assert len(found) == 1
    # The operations of the step are in it, not only its call.
    assert found[0].read_bytes().count(b"FusedBatchNormGrad") > 2


def test_a_run_that_resumes_within_the_profiled_steps_is_profiled(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda folder: calls.append("start"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: calls.append("stop"))
    with Profiling(tmp_path, (2, 4)) as profiling:
        for step in (3, 4, 5):
            profiling.before(step)
            profiling.after(step, {})
    assert calls == ["start", "stop"]


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.profile=[5,3]", r"`train`: `train.profile` must be \[first, last\].*\[5, 3\]"),
        ("train.profile=[1,601]", r"Received: \[1, 601\] and 600 steps"),
        ("train.profile=[0,3]", r"`train.profile.0`: .*greater than 0.*Received: 0"),
        ("train.patience.evaluations=0", r"`train.patience.evaluations`: .*Received: 0"),
        ("train.patience={}", r"key `train.patience.evaluations` is missing"),
        (
            'train.patience={"evaluations": 3, "watch": "iou"}',
            r"`train.patience.watch`: .*'mean_iou' or 'loss'. Received: 'iou'",
        ),
        ('train.callbacks=["a:b"]', r"`train.callbacks.0`"),
        ('train.callbacks=[{"name": "ab"}]', r"must be package.module:attribute. Received: 'ab'"),
        ("train.restarts=[0]", r"`train.restarts.0`: .*greater than 0.*Received: 0"),
        ("train.precision=float16", r"`train.precision`: .*'mixed_float16'.*Received: 'float16'"),
        ("schedule.name=cosin", r"Did you mean 'cosine'"),
    ],
)
def test_mistakes_are_one_line(override, message):
    with pytest.raises(config.ConfigError, match=message) as error:
        config.load("camvid_small_ce", [override])
    assert "\n" not in str(error.value)


def test_a_loss_to_watch_must_be_computed():
    overrides = [
        'train.patience={"evaluations": 2, "watch": "loss"}',
        "losses.cross_entropy.weight=0",
        "losses.lovasz.weight=1",
    ]
    with pytest.raises(config.ConfigError, match="one of cross_entropy, ohem, dice, focal, with"):
        config.load("camvid_small_ce", overrides)
    assert config.load("camvid_small_ce", [*overrides, "losses.dice.weight=1"])


def epochs(*overrides):
    return config.load("camvid_small_ce", ["train.epochs=1.5", *overrides])


def test_epochs_stand_in_place_of_steps():
    experiment = epochs("schedule.warmup_steps=0")
    assert experiment.train.steps is None
    # 367 images in batches of 8: 550.5 images are 68.8 batches.
    resolved = config.with_steps(experiment, 367)
    assert (resolved.train.steps, resolved.train.epochs) == (69, None)
    assert config.with_steps(resolved, 5) is resolved
    assert config.parse(json.loads(resolved.to_json()), source="test") == resolved


def test_the_length_that_is_said_last_holds(tmp_path):
    assert epochs("train.steps=200").train.steps == 200
    child = tmp_path / "child.json"
    child.write_text(json.dumps({"extends": "camvid_small_ce", "train": {"epochs": 3}}))
    assert (config.load(child).train.epochs, config.load(child).train.steps) == (3, None)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"extends": "child.json", "train": {"steps": 200}}))
    assert (config.load(other).train.epochs, config.load(other).train.steps) == (None, 200)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["train.steps=null"], r"needs `steps` or `epochs`.*steps=null, epochs=null"),
        (['train={"steps": 3, "epochs": 2}'], r"and not both. Received: steps=3, epochs=2"),
        (["train.epochs=0"], r"`train.epochs`: .*greater than 0.*Received: 0"),
        (["train.epochs=many"], r"`train.epochs`: .*Received: 'many'"),
    ],
)
def test_a_length_that_is_none_is_one_line(overrides, message):
    with pytest.raises(config.ConfigError, match=message) as error:
        config.load("camvid_small_ce", overrides)
    assert "\n" not in str(error.value)


def test_epochs_that_are_too_short_for_the_warm_up_are_one_line():
    message = r"train.epochs=1.5 of 20 images, 4 steps: .*Received: 100 and 4"
    with pytest.raises(config.ConfigError, match=message):
        config.with_steps(epochs("schedule.warmup_steps=100"), 20)


def test_float16_of_dilated_convolutions_on_a_cpu_is_one_line(tmp_path):
    backbone = {"name": "resnet18", "output_stride": 8, "stem_channels": 8}
    values = config.load("camvid_small_ce").model_dump(mode="json")
    values["model"] = {"backbone": backbone, "head": {"name": "hrnet"}}
    values["train"]["precision"] = "mixed_float16"
    run = Run.create(tmp_path / "run", config.parse(values, source="test"), CLASSES)
    with pytest.raises(UserError, match=r"no float16 gradients of dilated.*and 'layer4"):
        build_trainer(run, tf.distribute.get_strategy())
