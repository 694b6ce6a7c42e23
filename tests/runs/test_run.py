import dataclasses
import json

import keras
import pytest

from kseg import backbones, config
from kseg.errors import UserError
from kseg.runs import Run
from tests.tiny_networks import tiny_backbone
from tests.training.tiny import (
    CLASSES,
    create_run,
    experiment,
    tiny_network,  # noqa: F401 - a fixture.
)


def test_a_run_opens_as_it_was_created(tmp_path):
    created = create_run(tmp_path / "run")
    opened = Run.open(tmp_path / "run")
    assert (opened.config, opened.classes) == (created.config, CLASSES)
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["packages"]["keras"] and environment["python"]
    assert "git_commit" in environment


def trained(folder, data=None):
    """A run with an (empty) checkpoint."""
    run = Run.create(folder, experiment(), CLASSES, data)
    (run.path / "checkpoints").mkdir(exist_ok=True)
    (run.path / "checkpoints/step-00000002.npz").touch()
    return run


def test_another_config_is_refused_and_named(tmp_path):
    trained(tmp_path / "run")
    with pytest.raises(UserError, match=r"train.clip_norm was None, is 5.0. Use `restart=True`"):
        create_run(tmp_path / "run", clip_norm=5)
    renamed = dataclasses.replace(CLASSES, names=["a", "b", "c"])
    with pytest.raises(UserError, match=r"the classes were \['road', 'sky', 'car'\], are \['a'"):
        Run.create(tmp_path / "run", experiment(), renamed)
    # What does not touch the result may change.
    create_run(tmp_path / "run", log_every=7, checkpoint_every=9)


def test_counts_of_pixels_belong_to_the_classes(tmp_path):
    trained(tmp_path / "run")  # As earlier versions did: without them.
    counted = dataclasses.replace(CLASSES, training_pixels=[5, 6, 7])
    Run.create(tmp_path / "run", experiment(), counted)
    assert Run.open(tmp_path / "run").classes.training_pixels == [5, 6, 7]
    others = dataclasses.replace(CLASSES, training_pixels=[5, 6, 8])
    with pytest.raises(UserError, match="the training images have other labels"):
        Run.create(tmp_path / "run", experiment(), others)


@pytest.mark.parametrize("best", [True, False])
def test_more_steps_on_a_run_are_told_how_to_train_on(tmp_path, best):
    run = trained(tmp_path / "run")
    if best:
        (run.path / "checkpoints/best.npz").touch()
    file = run.path / "checkpoints" / ("best.npz" if best else "step-00000002.npz")
    with pytest.raises(UserError) as error:
        create_run(tmp_path / "run", steps=5)
    assert f"train.steps was 4, is 5 in {run.path}" in str(error.value)
    assert f'`run="{run.path}_more"` `overrides=["model.weights={file}"]`' in str(error.value)


def test_a_failed_start_does_not_block_another_one(tmp_path):
    run = create_run(tmp_path / "run")
    (run.path / "tensorboard").mkdir()
    (run.path / "notes.txt").write_text("mine")
    assert create_run(tmp_path / "run", steps=5).config.train.steps == 5
    assert not (run.path / "tensorboard").exists() and (run.path / "notes.txt").exists()
    # Results without checkpoints are work too: nothing of them is lost.
    (run.path / "saved_model").mkdir()
    (run.path / "saved_model/saved_model.pb").touch()
    with pytest.raises(UserError, match="`restart=True`"):
        create_run(tmp_path / "run", steps=6)
    assert (run.path / "saved_model/saved_model.pb").exists()


def identity(*, names=("road", "sky", "car"), images=4, pixels=(5, 6, 7, 0), content="a"):
    split = {"images": images, "pixels": list(pixels), "content": content}
    return {"dataset": "tiny", "classes": list(names), "splits": {"train": split}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 6}, "split 'train' had 4 images, has 6"),
        ({"pixels": (5, 8, 5, 0)}, "split 'train' had 6 pixels of 'sky', has 8"),
        ({"content": "b"}, "split 'train' has other images or masks than before"),
    ],
)
def test_other_data_are_refused_and_named(tmp_path, changes, message):
    run = trained(tmp_path / "run", identity())
    trained(tmp_path / "run", identity())
    with pytest.raises(UserError) as error:
        Run.create(tmp_path / "run", experiment(), CLASSES, identity(**changes))
    assert f"was trained on other data: {message}" in str(error.value)
    # Its checkpoints know, too.
    meta = {"step": 2, **run.identity()}
    other = Run(run.path, run.config, CLASSES, identity(**changes))
    run.check_checkpoint("file", meta)
    with pytest.raises(UserError, match=message):
        other.check_checkpoint("file", meta)


def test_a_checkpoint_of_another_config_is_refused_and_the_key_named(tmp_path):
    run = create_run(tmp_path / "run")
    meta = {"step": 2, **Run("other", experiment(clip_norm=3), CLASSES).identity()}
    with pytest.raises(UserError, match=r"train.clip_norm was 3.0, is None"):
        run.check_checkpoint("file", meta)
    with pytest.raises(UserError, match="does not store its step"):
        run.check_checkpoint("file", {})


@pytest.mark.parametrize("name", ["config.json", "classes.json", "data.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"names": ["a"]}', b"\xff\xfe", b"[" * 100_000, b'{"a": 1}'],
)
def test_a_damaged_folder_is_one_line(tmp_path, name, content):
    run = trained(tmp_path / "run", identity())
    (run.path / name).write_bytes(content)
    if name == "data.json" and content.startswith(b'{"'):
        return  # It tells the data of no run, as that of an earlier version.
    with pytest.raises(UserError) as error:
        Run.open(run.path)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["names", "palette"])
def test_classes_without_colours_or_names_are_refused(tmp_path, key):
    run = create_run(tmp_path / "run")
    values = json.loads((run.path / "classes.json").read_text())
    (run.path / "classes.json").write_text(json.dumps({**values, key: values[key][:2]}))
    with pytest.raises(UserError, match=r"classes\.json"):
        Run.open(run.path)


def test_killed_processes_leave_nothing_for_ever(tmp_path):
    run = trained(tmp_path / "run")
    (run.path / ".saved_model.123.tmp/new").mkdir(parents=True)
    (run.path / "checkpoints/.step-00000002.npz.123.tmp").touch()
    (run.path / ".hidden").touch()
    (run.path / "evaluation").mkdir()
    (run.path / "evaluation/.val.json.123.tmp").touch()
    Run.clean(run.path)
    assert not list((run.path / "evaluation").iterdir())
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        "step-00000002.npz"
    ]
    assert not (run.path / ".saved_model.123.tmp").exists() and (run.path / ".hidden").exists()


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.usefixtures("tiny_network")
def test_a_network_has_the_precision_of_its_run_whatever_ran_before(tmp_path, policy):
    run = create_run(tmp_path / "run", precision=policy)
    for before in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(before)
        segmenter = run.build_segmenter()
        assert segmenter.get_layer("ocr_value").dtype_policy.name == policy
        assert keras.config.dtype_policy().name == before
    other = run.build_segmenter(precision="float32")
    assert other.get_layer("ocr_value").dtype_policy.name == "float32"


def test_presets_of_keras_cv_are_rebuilt_without_their_weights(tmp_path, monkeypatch):
    """Weights come from `model.backbone.weights`: null is random, and a rebuild downloads none."""
    values = experiment().model_dump()
    values["model"]["backbone"] = {"name": "keras_cv", "preset": "efficientnetv2_s_imagenet"}
    values["contrast"] = []
    run = Run(tmp_path, config.parse(values, source="test"), CLASSES)
    seen = {}

    def build(**arguments):
        seen.update(arguments)
        return tiny_backbone()

    monkeypatch.setitem(backbones.BACKBONES, "keras_cv", build)
    run.build_segmenter()
    assert seen["preset"] == "efficientnetv2_s_imagenet" and seen["load_weights"] is False


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        Run.open(tmp_path)


def test_checkpoints_are_found_by_name(tmp_path):
    run = create_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"has no checkpoint 'latest'. It has: none yet"):
        run.checkpoint("latest")
    folder = run.path / "checkpoints"
    folder.mkdir()
    strange = (".step-00000012.npz.1.tmp", "step-00000040 (copy).npz", "step-7.npz", "step-.npz")
    for name in ("step-00000002.npz", "step-00000010.npz", *strange):
        (folder / name).touch()
    assert run.checkpoint_steps() == [2, 10]
    assert run.checkpoint("latest").name == run.checkpoint("best").name == "step-00000010.npz"
    assert run.checkpoint("2").name == run.checkpoint(2).name == "step-00000002.npz"
    (folder / "best.npz").touch()
    assert run.checkpoint("best").name == "best.npz"
    with pytest.raises(UserError, match="It has: best, 2, 10"):
        run.checkpoint("3")


def test_delete_leaves_what_is_not_the_runs(tmp_path):
    run = create_run(tmp_path / "run")
    for folder in ("checkpoints", "analysis", "saved_model", "evaluation", "tensorboard"):
        (run.path / folder).mkdir()
    (run.path / "data.json").touch()
    (run.path / "notes.txt").write_text("mine")
    Run.delete(run.path)
    assert [path.name for path in run.path.iterdir()] == ["notes.txt"]
    Run.delete(tmp_path / "nothing")
