import dataclasses
import sys

import pytest

import pipelines
from pipelines import beam
from pipelines.errors import DataError

TINY = {"train_images": 5, "val_images": 2, "size": (32, 48), "num_shards": 2, "progress": False}


def test_direct_runner(tmp_path):
    """The same records as without Beam."""
    pytest.importorskip("apache_beam")
    here = pipelines.prepare("synthetic", output=tmp_path / "here", **TINY)
    distribute = beam.distributor(["--runner", "DirectRunner"])
    there = pipelines.prepare("synthetic", output=tmp_path / "there", distribute=distribute, **TINY)
    assert dataclasses.replace(there, folder=here.folder) == here
    pipelines.verify(there.folder, progress=False)


def test_beam_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(
        DataError, match=r"Beam is not installed\. Install it: pip install 'kseg.beam"
    ):
        beam.distributor()
