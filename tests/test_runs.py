import dataclasses
import json

import pytest

from kseg.errors import UserError
from kseg.runs import Run
from tests.training.tiny import CLASSES, create_run, experiment


def test_a_run_opens_as_it_was_created(tmp_path):
    created = create_run(tmp_path / "run")
    opened = Run.open(tmp_path / "run")
    assert (opened.config, opened.classes) == (created.config, CLASSES)
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["packages"]["keras"] and environment["python"]
    assert "git_commit" in environment


def test_another_config_is_refused_and_named(tmp_path):
    create_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"train.steps was 4, is 5. Use --restart"):
        create_run(tmp_path / "run", steps=5)
    renamed = dataclasses.replace(CLASSES, names=["a", "b", "c"])
    with pytest.raises(UserError, match="the classes of the data"):
        Run.create(tmp_path / "run", experiment(), renamed)
    # What does not touch the result may change.
    create_run(tmp_path / "run", log_every=7, checkpoint_every=9)


def test_counts_of_pixels_belong_to_the_classes(tmp_path):
    create_run(tmp_path / "run")  # As earlier versions did: without them.
    counted = dataclasses.replace(CLASSES, training_pixels=[5, 6, 7])
    Run.create(tmp_path / "run", experiment(), counted)
    assert Run.open(tmp_path / "run").classes.training_pixels == [5, 6, 7]
    others = dataclasses.replace(CLASSES, training_pixels=[5, 6, 8])
    with pytest.raises(UserError, match="the classes of the data"):
        Run.create(tmp_path / "run", experiment(), others)


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        Run.open(tmp_path)


def test_checkpoints_are_found_by_name(tmp_path):
    run = create_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"has no checkpoint 'latest'. It has: none yet"):
        run.checkpoint("latest")
    folder = run.path / "checkpoints"
    folder.mkdir()
    for name in ("step-00000002.npz", "step-00000010.npz", ".step-00000012.npz.1.tmp"):
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
    for folder in ("checkpoints", "analysis"):
        (run.path / folder).mkdir()
    (run.path / "notes.txt").write_text("mine")
    Run.delete(run.path)
    assert [path.name for path in run.path.iterdir()] == ["notes.txt"]
    Run.delete(tmp_path / "nothing")
