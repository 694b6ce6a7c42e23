import pathlib
import shutil

import numpy as np
import pytest

from kseg.errors import UserError
from kseg.studies import results
from tests.studies.fakes import add

STUDIES = pathlib.Path(__file__).resolve().parents[2] / "docs" / "studies"


def test_what_is_written_is_read(tmp_path):
    add(tmp_path, "ce", 0, [[10, 20], [30, 40]])
    (result,) = results.read(tmp_path)
    assert (result["arm"], result["seed"]) == ("ce", 0)
    np.testing.assert_array_equal(result.counts.pixels[:, 0], [[10, 20], [30, 40]])
    assert results.read_settings(tmp_path) == {result["fingerprint"]: {"key": 1}}


def test_an_empty_folder_has_no_results(tmp_path):
    assert results.read(tmp_path / "none") == []


def test_the_run_of_a_truncated_line_is_repeated(tmp_path):
    add(tmp_path, "ce", 0, [[1, 2]])
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"arm": "ce", "se')
    assert len(results.read(tmp_path)) == 1
    add(tmp_path, "ce", 1, [[1, 2]])
    assert [r["seed"] for r in results.read(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    "line", ['{"arm": "ce", "se', "[" * 100_000, "[]", '"text"', '{"arm": "ce"}']
)
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "results.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"results\.jsonl:1 "):
        results.read(tmp_path)


def test_settings_that_were_edited_are_refused(tmp_path):
    add(tmp_path, "ce", 0, [[1, 2]])
    (file,) = tmp_path.glob("settings/*.json")
    file.write_text('{"key": 2}')
    with pytest.raises(UserError, match="was changed"):
        results.read_settings(tmp_path)


def test_folders_of_several_machines_merge_by_copying(tmp_path):
    add(tmp_path / "a", "ce", 0, [[1, 2]], part=(1, 2))
    add(tmp_path / "b", "ce", 1, [[3, 4]], part=(2, 2))
    add(tmp_path / "b", "ce", 0, [[9, 9]], part=(2, 2))  # Run twice: the first one is used.
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)
    result = results.read(tmp_path / "a")
    assert [r["seed"] for r in result] == [0, 1]
    assert result[0]["last"]["class_iou"][0] == 0.01


@pytest.mark.parametrize("name", sorted(path.name for path in STUDIES.iterdir()))
def test_results_of_the_repository_are_complete(name):
    """Each line has its settings and counts; otherwise it would not count."""
    settings = results.read_settings(STUDIES / name)
    for run in results.read(STUDIES / name):
        assert run["fingerprint"] in settings
        assert run.counts.ids
