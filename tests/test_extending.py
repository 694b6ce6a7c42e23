"""docs/extending.md: every block is run, as the page says."""

import json
import sys

import pytest

from kseg import config
from kseg.commands import train
from kseg.errors import UserError
from kseg.segmenters import build_segmenter
from pipelines import read_manifest
from tests.test_docs import PAGES, blocks

PAGE = PAGES["extending.md"]
BACKBONE, HEAD, METHOD, DATA = blocks(PAGE, "python")
SMALL = [
    "data.dataset=discs",
    "data.crop_size=[32,32]",
    "data.batch_size=2",
    "train.steps=2",
    "train.log_every=1",
    "train.panels=0",
    "schedule.warmup_steps=0",
    "model.embedding_dim=8",
]


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A folder with `mine.py`, `mine.json` and the data of the page."""
    (tmp_path / "mine.py").write_text("\n".join((BACKBONE, HEAD, METHOD)))
    (experiment,) = blocks(PAGE, "json")
    (tmp_path / "mine.json").write_text(experiment)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    exec(DATA, {"__name__": "page"})
    return tmp_path


def test_the_page(user):
    manifest = read_manifest("data/discs")
    assert (manifest.class_names, manifest.split("val").num_images) == (["ground", "disc"], 4)
    result = train.train("mine.json", overrides=SMALL)
    assert result["saved_model"].is_dir()
    assert result["run"].config.contrast[0].name == "mine:BalancedContrast"
    import mine

    segmenter = build_segmenter(mine.plain_backbone(width=2), mine.sum_head, 5)
    assert segmenter.output["logits"].shape[-1] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('model.backbone.name="mine:none"', "mine has no 'none'"),
        ('model.head.name="nowhere:head"', "nowhere cannot: ModuleNotFoundError"),
        ('model.head.name="broken:head"', "broken cannot: ZeroDivisionError"),
        ('model.head.arguments={"channel":3}', "unexpected keyword argument 'channel'"),
        ('model.head.name="mine:plain_backbone"', "cannot be built"),
        ('model.backbone.name="mine:sum_head"', "cannot be built"),
        ('model.backbone.name="lies:backbone"', "but declares stride 8"),
        ('contrast.0.name="mine:sum_head"', "The entry 'mine:sum_head' of `contrast`"),
    ],
)
def test_mistakes_are_one_line(user, change, message):
    (user / "broken.py").write_text("1 / 0")
    lies = BACKBONE.replace('"c3": 8', '"c3": 16').replace('"c2": 4', '"c2": 8')
    (user / "lies.py").write_text(lies.replace("plain_backbone(*", "backbone(*"))
    with pytest.raises(UserError) as error:
        train.train("mine.json", overrides=[*SMALL, change], run="other")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["a:b:c", ":head", "mine:", "mine.:head", "my module:head", "a/b:c"]
)
def test_names_that_cannot_be_imported(name):
    values = {"model": {"head": {"name": name}, "backbone": {"name": "resnet18"}}}
    values |= {
        "name": "x",
        "data": {"dataset": "discs", "crop_size": [8, 8]},
        "train": {"steps": 1},
    }
    with pytest.raises(config.ConfigError, match=r"must be package\.module:attribute"):
        config.parse(json.loads(json.dumps(values)), source="test")
