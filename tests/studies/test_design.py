import json

import pytest

from kseg.config import ConfigError
from kseg.studies import design

BASE = {
    "model": {"backbone": {"name": "resnet18"}, "head": {"name": "hrnet"}},
    "data": {"dataset": "tiny", "path": "data", "crop_size": [32, 32], "batch_size": 2},
    "train": {"steps": 4},
}


@pytest.fixture
def write(tmp_path):
    """Writes the base config and a study; returns the study's path."""
    (tmp_path / "base.json").write_text(json.dumps(BASE))

    def write_study(**values):
        study = {"base": "base.json", "arms": {"ce": {}, "mscs": MSCS}, "seeds": [0, 1], **values}
        path = tmp_path / "tiny.json"
        path.write_text(json.dumps({k: v for k, v in study.items() if v is not ...}))
        return path

    return write_study


MSCS = {"contrast": [{"name": "multi_scale", "weight": 0.2}]}


def test_arms_extend_the_base(write):
    plan = design.load_plan(write())
    assert plan.name == "tiny" and plan.baseline == "ce"
    assert not plan.experiments["ce"].contrast
    assert plan.experiments["mscs"].contrast[0].weight == 0.2
    assert plan.experiments["mscs"].train.steps == 4


def test_an_arm_may_be_a_config_of_its_own(write, tmp_path):
    own = {**BASE, "train": {"steps": 7}}
    (tmp_path / "own.json").write_text(json.dumps(own))
    plan = design.load_plan(write(arms={"ce": {}, "own": "own.json"}, baseline="own"))
    assert plan.experiments["own"].train.steps == 7 and plan.baseline == "own"


def test_runs_pair_the_arms_of_a_seed_first(write):
    plan = design.load_plan(write())
    assert plan.runs() == [("ce", 0), ("mscs", 0), ("ce", 1), ("mscs", 1)]
    assert plan.runs(["mscs"], [100]) == [("mscs", 100)]
    experiment = plan.experiment("mscs", 1)
    assert (experiment.seed, experiment.name) == (1, "mscs-1")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"base": ...}, "`base` is missing"),
        ({"base": "none.json"}, "There is no config file"),
        ({"arms": {}}, "`arms`"),
        ({"arms": {"ce": {}, "CE": MSCS}}, "differ in more than case. Received: ce, CE"),
        ({"seeds": [True]}, r"`seeds`: must be a number. Received: \[true\]"),
        ({"arms": {"a/b": {}}}, "the name of an arm"),
        ({"arms": {"ce": {"seed": 3}}}, "must not set 'seed'"),
        ({"arms": {"ce": {"train": {"step": 3}}}}, "arm 'ce': .*unknown key `train.step`"),
        ({"arms": {"ce": 3}}, "arm 'ce' must be a section .* Received: 3"),
        ({"baseline": "none"}, "`baseline` must be an arm"),
        ({"seeds": [1, 1]}, "`seeds` must be distinct"),
        ({"seeds": []}, "`seeds`"),
        ({"seed": [1]}, "unknown key `seed`. Did you mean `seeds`?"),
    ],
)
def test_mistakes(write, change, message):
    with pytest.raises(ConfigError, match=message):
        design.load_plan(write(**change))


def test_unknown_arm(write):
    with pytest.raises(ConfigError, match=r"has no arm 'none'\. It has: ce, mscs"):
        design.load_plan(write()).runs(["none"])


def test_settings_leave_out_seed_name_and_paths(write):
    plan = design.load_plan(write())
    first, second = (design.settings(plan.experiment("mscs", seed), "data", {}) for seed in (0, 1))
    assert first == second
    assert design.fingerprint(first) == design.fingerprint(second)
    assert first["contrast.0.weight"] == 0.2 and first["data.fingerprint"] == "data"
    assert not {"seed", "name", "data.path"} & set(first)


def test_other_settings_are_other_results(write):
    experiment = design.load_plan(write()).experiments["mscs"]
    now = design.settings(experiment, "data", {})
    assert not design.differing_keys(now, now, experiment)
    other = design.settings(experiment, "other", {})
    assert design.differing_keys(other, now, experiment) == ["data.fingerprint"]
    found = design.differing_keys({**now, "contrast.0.weight": 0.1}, now, experiment)
    assert found == ["contrast.0.weight"]
    # A key that a later version removed, or that an older one did not know.
    assert design.differing_keys({**now, "gone": 1}, now, experiment) == ["gone"]
    older = {key: value for key, value in now.items() if key != "train.clip_norm"}
    assert not design.differing_keys(older, now, experiment)  # At its default now.
    older = {key: value for key, value in now.items() if key != "contrast.0.weight"}
    assert design.differing_keys(older, now, experiment) == ["contrast.0.weight"]


def test_weights_count_by_name_and_content(write):
    experiment = design.load_plan(write()).experiments["mscs"]
    key = "model.backbone.weights"

    def with_weights(path, checksum):
        backbone = experiment.model.backbone.model_copy(update={"weights": path})
        model = experiment.model.model_copy(update={"backbone": backbone})
        changed = experiment.model_copy(update={"model": model})
        return design.settings(changed, "data", {key: checksum}), changed

    now, experiment = with_weights("weights/a.pth", "11")
    assert now[key] == "a.pth"
    assert not design.differing_keys(with_weights("elsewhere/a.pth", "11")[0], now, experiment)
    assert design.differing_keys(with_weights("weights/a.pth", "22")[0], now, experiment)
    assert design.differing_keys(with_weights("weights/b.pth", "11")[0], now, experiment)
    # Trained from random weights, because the file was missing.
    assert design.differing_keys(with_weights("weights/a.pth", None)[0], now, experiment)
    # Only the tables are written, where the weights are not.
    now, experiment = with_weights("weights/a.pth", None)
    assert not design.differing_keys(with_weights("weights/a.pth", "11")[0], now, experiment)
    assert design.differing_keys(with_weights("weights/b.pth", "11")[0], now, experiment)


@pytest.mark.parametrize("seeds", [[0, 0], [3, -1]])
def test_chosen_seeds_are_distinct_and_not_negative(write, seeds):
    with pytest.raises(ConfigError, match="must be distinct and not negative"):
        design.load_plan(write()).runs(None, seeds)
