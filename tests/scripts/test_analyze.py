import json

import numpy as np
import pytest

from kseg.analysis.features import FeatureCollector
from kseg.contrast.sampling import resize_labels
from kseg.errors import UserError
from pipelines import loader
from tests.scripts.tiny_run import NAMES, script, write_data
from tests.scripts.tiny_run import tiny_run as tiny_run

analyze = script("analyze")


def call(*arguments):
    assert analyze.main([str(argument) for argument in arguments]) == 0


@pytest.mark.parametrize("raw", [True, False])
def test_features(tiny_run, raw, capsys):
    call("--run", tiny_run.path, "--what", "features", "--samples", 50, *["--raw"] * raw)
    found = json.loads((tiny_run.path / "evaluation" / "features.json").read_text())
    segmenter = tiny_run.segmenter()
    collector = None
    for batch in loader.evaluation_dataset(tiny_run.config.data.folder, "val"):
        features = segmenter(batch["image"])["features"].numpy()[0]
        labels = resize_labels(batch["label"], *features.shape[:2]).numpy()
        if not raw:
            features = features / np.linalg.norm(features, axis=-1, keepdims=True)
        dim = features.shape[-1]
        collector = collector or FeatureCollector(3, dim, samples_per_class=50)
        collector.add(features.reshape(-1, dim), labels.reshape(-1))
    expected = collector.statistics().to_dict(NAMES)
    printed = capsys.readouterr().out
    for key in ("A", "U", "U_3", "U_5"):
        assert found[key] == pytest.approx(expected[key], rel=1e-3)
        assert f"{key} {found[key]:.4f}" in printed
    assert (found["split"], found["unit_norm"]) == ("val", not raw)
    assert [found["classes"][name]["num_samples"] for name in NAMES] == [50, 50, 50]


def test_refuses(tiny_run, tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        call("--run", tiny_run.path, "--what", "features", "--samples", 1)
    other = write_data(tmp_path / "other", names=["a", "b", "c"])
    with pytest.raises(UserError, match="classes of the model"):
        call("--run", tiny_run.path, "--what", "features", "--data", other)
    with pytest.raises(UserError, match="needs --run"):
        call("--what", "features")
    with pytest.raises(SystemExit):
        call("--run", tiny_run.path, "--what", "nothing")
