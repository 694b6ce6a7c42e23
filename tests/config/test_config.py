import json
import pathlib

import pytest

from kseg import config
from kseg.config import schema

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.json") if p.name != "schema.json")


def write(tmp_path, **changes):
    values = json.loads(config.load(ROOT / "configs/ade20k_ocrnet.json").to_json()) | changes
    del values["name"]
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_names_its_run(path):
    experiment = config.load(path)
    assert experiment.name == path.stem


def test_the_schema_for_editors_is_in_step():
    assert (ROOT / "configs/schema.json").read_text() == config.json_schema(), (
        "run: python -m kseg.config > configs/schema.json"
    )


def test_the_headline_config_holds_the_papers_settings():
    experiment = config.load(ROOT / "configs/ade20k_ocrnet.json")
    assert (experiment.model.backbone.name, experiment.model.head.name) == ("hrnet_w48", "ocr")
    (contrast,) = experiment.contrast
    assert (contrast.name, contrast.weight, contrast.temperature) == ("multi_scale", 0.1, 0.1)
    assert list(contrast.scale_weights.values()) == [1.0, 0.7, 0.4, 0.1]
    assert contrast.cross_scale_pairs == [("c2", "c5"), ("c2", "c4")]
    assert experiment.data.crop_size == (512, 512)
    assert (experiment.data.batch_size, experiment.train.steps) == (16, 160_000)


def test_a_resolved_config_loads_to_itself(tmp_path):
    experiment = config.load(write(tmp_path))
    resolved = tmp_path / "config.json"
    resolved.write_text(experiment.to_json())
    assert config.load(resolved) == experiment


@pytest.mark.parametrize(
    "override, key, expected",
    [
        ("train.steps=2", lambda c: c.train.steps, 2),
        ("data.path=some/folder", lambda c: c.data.path, "some/folder"),
        ("data.color_jitter=null", lambda c: c.data.color_jitter, None),
        ("data.color_jitter.hue=0", lambda c: c.data.color_jitter.hue, 0),
        ("data.service=grpc://a.b:5000", lambda c: c.data.service, "grpc://a.b:5000"),
        ("contrast.0.weight=0.2", lambda c: c.contrast[0].weight, 0.2),
        ("contrast=[]", lambda c: c.contrast, []),
        ("train.clip_norm=1e1", lambda c: c.train.clip_norm, 10),
    ],
)
def test_overrides(tmp_path, override, key, expected):
    assert key(config.load(write(tmp_path), [override])) == expected


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.step=2", "unknown key `train.step`. Did you mean `train.steps`?"),
        ("model.head.chanels=3", "Did you mean `model.head.channels`?"),
        ("contrast.0.temprature=1", "Did you mean `contrast.0.temperature`?"),
        ("model.backbone.name=hrnet_w19", "Did you mean 'hrnet_w18'?"),
        ("model.head.name=psp", "['deeplabv3', 'hrnet', 'ocr', 'upernet']. Received: 'psp'"),
        ("data.scale_range=[2, 1]", "must be 0 < lowest <= highest. Received: [2.0, 1.0]"),
        ("data.crop_size=[0, 10]", "greater than 0. Received: 0"),
        ('data.blur={"sigma": [2, 1]}', "must be lowest <= highest. Received: [2.0, 1.0]"),
        ("data.service=localhost:5000", "Received: 'localhost:5000'"),
        ('contrast.0.scale_weights={"c2": 1}', "'c5' of ['c2', 'c5'] has none"),
        ("contrast.1.weight=1", "the config has no key 'contrast.1.weight'"),
        ("schedule.warmup_steps=160000", "must be below `train.steps`"),
        ("train.steps", "must be key=value, such as train.steps=100. Received: 'train.steps'"),
        ("optimizer.learning_rate=NaN", "NaN is no number"),
        ("name=../elsewhere", "`name`"),
        ("train.steps=true", "`train.steps`: must be a number. Received: true"),
        ("data.crop_size=[64, true]", "`data.crop_size`: must be a number. Received: [64, true]"),
        ("contrast.0.weight=false", "`contrast.0.weight`: must be a number. Received: false"),
        (
            "data.crop_size=128",
            "`data.crop_size`: must be a list, such as [128, 128]. Received: 128",
        ),
        ("data.crop_size=[64]", "`data.crop_size` has too few values. Received: [64]"),
        ("train.restarts=20", "`train.restarts`: must be a list. Received: 20"),
        ("optimizer=adamw", 'must be an object, such as {"name": "adamw"}. Received: \'adamw\''),
        ("losses=dice", "`losses`: must be an object, { ... }. Received: 'dice'"),
        ("optimizer.learning_rate=fast", "must be a valid number. Received: 'fast'"),
        ("data.flip=1", "`data.flip`: must be true or false. Received: 1"),
        ("contrast.0.cross_replica=yes", 'must be true or false. Received: "yes"'),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, override, message):
    with pytest.raises(config.ConfigError) as error:
        config.load(write(tmp_path), [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", ["data.on_error=skip", "data.service=grpc://a:1"])
def test_what_a_cache_in_memory_goes_not_with(tmp_path, other):
    with pytest.raises(config.ConfigError, match="cannot be combined with"):
        config.load(write(tmp_path), ["data.cache=memory", other])


def test_an_objective_cannot_be_named_twice(tmp_path):
    entry = {"name": "multi_scale"}
    with pytest.raises(config.ConfigError, match="names an objective twice"):
        config.load(write(tmp_path, contrast=[entry, entry]))


def test_a_missing_file_suggests_its_neighbour():
    with pytest.raises(config.ConfigError, match=r"Did you mean .*ade20k_ocrnet.json"):
        config.load(ROOT / "configs/ade20k_ocrnt.json")


@pytest.mark.parametrize("text, message", [("{", "not a readable JSON"), ("[]", "JSON object")])
def test_files_that_are_no_config(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(config.ConfigError, match=message):
        config.load(path)


def test_a_file_extends_others(tmp_path):
    write(tmp_path)  # experiment.json
    (tmp_path / "base").mkdir()
    (tmp_path / "base/head.json").write_text(
        json.dumps({"name": "ignored", "model": {"head": {"name": "hrnet"}}, "seed": 5})
    )
    child = tmp_path / "child.json"
    child.write_text(
        json.dumps({"extends": ["experiment.json", "base/head.json"], "train": {"steps": 7}})
    )
    experiment = config.load(child, ["seed=6"])
    base = config.load(tmp_path / "experiment.json")
    assert experiment.name == "child"
    assert experiment.seed == 6
    assert experiment.train == base.train.model_copy(update={"steps": 7})
    assert experiment.model.backbone == base.model.backbone
    # A section of another name takes nothing over: an OCR head's keys are unknown to this one.
    assert experiment.model.head == schema.HRNetHead(name="hrnet")
    assert experiment.data == base.data
    assert "extends" not in json.loads(experiment.to_json())


def test_a_list_replaces_the_inherited_one(tmp_path):
    write(tmp_path)
    child = tmp_path / "child.json"
    child.write_text(json.dumps({"extends": "experiment.json", "contrast": []}))
    assert config.load(child).contrast == []


def test_files_that_extend_each_other(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"extends": f"{other}.json"}))
    with pytest.raises(config.ConfigError, match=r"a.json extends itself: a.json -> b.json"):
        config.load(tmp_path / "a.json")


def test_a_missing_base_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"extends": "nowhere.json"}))
    with pytest.raises(config.ConfigError, match=r"no config file .*nowhere.json"):
        config.load(tmp_path / "a.json")


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p.stem.endswith("_regioncontrast") and "small" not in p.stem]
)
def test_region_contrast_trains_as_its_public_code(path):
    experiment = config.load(path)
    assert experiment.optimizer.learning_rate_factors == {"head": 10.0}
    if not path.stem.startswith("coco_stuff"):
        ohem = experiment.losses.ohem
        assert (ohem.threshold, ohem.min_kept) == (0.7, 100_000)
        assert experiment.losses.cross_entropy.weight == 0


def test_base_files_are_all_in_use():
    used = set()
    for path in CONFIGS:
        bases = json.loads(path.read_text()).get("extends", [])
        used |= {bases} if isinstance(bases, str) else set(bases)
    there = {f"base/{path.name}" for path in (ROOT / "configs/base").glob("*.json")}
    assert there <= used


def test_keras_cv_needs_a_class_or_a_preset(tmp_path):
    path = write(tmp_path, model={"backbone": {"name": "keras_cv"}, "head": {"name": "deeplabv3"}})
    with pytest.raises(config.ConfigError, match="class_name=None, preset=None"):
        config.load(path)


def test_pyramid_stages_need_the_head_that_has_them(tmp_path):
    contrast = [{"name": "contextrast", "layer_weights": {"fpn_c2": 1}, "reference": "fpn_c2"}]
    path = write(tmp_path, contrast=contrast)
    with pytest.raises(config.ConfigError, match=r"upernet head.*'fpn_c2'.*'ocr'"):
        config.load(path)
    experiment = config.load(path, ['model.head={"name": "upernet"}'])
    assert experiment.contrast[0].stages == ["fpn_c2"]


def test_learning_rate_factors(tmp_path):
    path = write(tmp_path)
    factors = config.load(path, ["optimizer.learning_rate_factors.backbone=0.1"]).optimizer
    assert factors.learning_rate_factors == {"backbone": 0.1}
    with pytest.raises(config.ConfigError, match=r"learning_rate_factors.*Received: -1"):
        config.load(path, ["optimizer.learning_rate_factors.head=-1"])
    with pytest.raises(config.ConfigError, match=r"layer_decay. is for Swin.*'hrnet"):
        config.load(path, ["optimizer.layer_decay=0.9"])
    swin = config.load(path, ['model.backbone={"name": "swin_t"}', "optimizer.layer_decay=0.9"])
    assert swin.optimizer.layer_decay == 0.9


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "losses.cross_entropy.class_weights=median",
            "`losses.cross_entropy.class_weights`: must be 'median_frequency', "
            "'sqrt_median_frequency' or 'log', or: must be a list. "
            "Received: 'median'",
        ),
        (
            "losses.cross_entropy.class_weights=[1, -2]",
            "`losses.cross_entropy.class_weights.1`: must be greater than or equal to 0. "
            "Received: -2",
        ),
        (
            "train.jit_compile=maybe",
            "`train.jit_compile`: must be a valid boolean, or: must be 'auto'. Received: 'maybe'",
        ),
    ],
)
def test_a_key_of_several_types_is_one_line(tmp_path, override, message):
    path = write(tmp_path)
    with pytest.raises(config.ConfigError) as error:
        config.load(path, [override])
    assert str(error.value) == f"{path}: {message}"


def test_losses_and_objectives_that_do_nothing_are_refused(tmp_path):
    path = write(tmp_path)
    with pytest.raises(config.ConfigError, match="needs a weight above 0"):
        config.load(path, ["losses.cross_entropy.weight=0"])
    assert config.load(path, ["losses.cross_entropy.weight=0", "losses.ohem={}"]).losses.ohem
    with pytest.raises(config.ConfigError, match=r"'multi_scale' must be below .train.steps."):
        config.load(path, ["contrast.0.start_step=10", "train.steps=10"])


def test_the_centres_of_one_image_have_no_positives(tmp_path):
    write(tmp_path, contrast=[{"name": "region_contrast", "scope": "batch"}])
    with pytest.raises(config.ConfigError, match=r"contrasts the images of a batch"):
        config.load(tmp_path / "experiment.json", ["data.batch_size=1"])
    config.load(tmp_path / "experiment.json", ["data.batch_size=2"])


def test_no_layer_may_share(tmp_path):
    path = write(tmp_path, contrast=[{"name": "contextrast", "shared_layers": []}])
    assert config.load(path).contrast[0].shared_layers == []


def write_config(folder, **sections):
    values = {
        "model": {"backbone": {"name": "hrnet_w18_small"}, "head": {"name": "ocr"}},
        "data": {"dataset": "none", "crop_size": [64, 64], "batch_size": 2},
        "train": {"steps": 600},
        **sections,
    }
    path = folder / "long.json"
    path.write_text(json.dumps(values))
    return path


REGION = {"name": "region_contrast", "start_step": 100, "warmup_steps": 150}


@pytest.mark.parametrize(
    ("schedule", "contrast", "steps", "expected"),
    [
        # A fifth of the run: a fifth of everything that is counted in steps.
        ({"name": "poly", "warmup_steps": 200}, [REGION], 120, (40, 20, 30)),
        ({"name": "linear", "warmup_steps": 200}, [REGION], 200, (66, 33, 50)),
        # The weight would not have risen to the end, though it starts in time.
        ({"name": "poly", "warmup_steps": 12}, [REGION], 240, (4, 40, 60)),
        # What fits is left alone.
        ({"name": "poly", "warmup_steps": 12}, [REGION], 250, (12, 100, 150)),
        ({"name": "poly", "warmup_steps": 12}, [REGION], 6000, (12, 100, 150)),
        ({"name": "poly", "warmup_steps": 12}, [REGION], 1, (0, 0, 0)),
    ],
)
def test_a_shortened_run_has_shortened_warm_ups(
    tmp_path, capsys, schedule, contrast, steps, expected
):
    path = write_config(tmp_path, schedule=schedule, contrast=contrast)
    found = config.load(path, [f"train.steps={steps}"])
    (objective,) = found.contrast
    values = (found.schedule.warmup_steps, objective.start_step, objective.warmup_steps)
    assert values == expected
    told = capsys.readouterr().err
    if expected == (12, 100, 150):
        assert told == ""
    else:
        assert told.count("\n") == 1 and f"train.steps={steps}" in told
        for key, value in zip(
            ("schedule.warmup_steps", "contrast.0.start_step", "contrast.0.warmup_steps"),
            expected,
            strict=True,
        ):
            assert f"{key}={value}" in told


def test_what_was_chosen_with_a_shortened_run_stays(tmp_path, capsys):
    path = write_config(tmp_path, schedule={"name": "poly", "warmup_steps": 200}, contrast=[REGION])
    overrides = ["train.steps=120", "contrast.0.start_step=50", "schedule.warmup_steps=7"]
    found = config.load(path, overrides)
    assert found.schedule.warmup_steps == 7 and found.contrast[0].start_step == 50
    assert found.contrast[0].warmup_steps == 30
    with pytest.raises(config.ConfigError, match=r"overrides=\[.schedule.warmup_steps=12"):
        config.load(path, ["train.steps=120", "schedule.warmup_steps=120"])
    # A file that does not fit itself is no shortened run.
    path = write_config(tmp_path, schedule={"name": "poly", "warmup_steps": 600})
    with pytest.raises(config.ConfigError, match=r"must be below `train.steps`"):
        config.load(path)


@pytest.mark.parametrize("name", ["camvid_small_ce", "camvid_ocrnet_small", "ade20k_ocrnet"])
def test_configs_can_be_shortened(name):
    path = pathlib.Path(__file__).parents[2] / f"configs/{name}.json"
    assert config.load(path, ["train.steps=2"]).train.steps == 2
