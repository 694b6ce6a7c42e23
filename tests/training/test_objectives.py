import pytest

from kseg.config.schema import Contextrast, MultiScale, RegionContrast
from kseg.errors import UserError
from kseg.training.build import build_objectives
from kseg.training.schedules import Ramp


def test_arguments_and_weights_are_those_of_the_config():
    entries = [
        MultiScale(name="multi_scale", weight=0.2, max_anchors=50),
        Contextrast(name="contextrast", hard_fraction=0.25),
        RegionContrast(name="region_contrast", capacity=7),
    ]
    objectives = build_objectives(entries, num_classes=4, seed=3)
    assert [weight for _, weight in objectives] == [0.2, 0.1, 0.1]
    for entry, (objective, _) in zip(entries, objectives, strict=True):
        config = objective.get_config()
        for key, value in entry.model_dump().items():
            if key in config and key != "name":
                assert config[key] == (tuple(value) if isinstance(config[key], tuple) else value)
        assert config["num_classes"] == 4
        assert config.get("seed", 3) == 3


def test_a_compact_bank_has_a_slot_for_each_training_image_of_a_class():
    entry = RegionContrast(name="region_contrast", capacity=50, layout="compact")
    ((objective, _),) = build_objectives(
        [entry], num_classes=3, seed=0, training_images=[90, 0, 12]
    )
    assert objective.capacity == [50, 1, 12]


def test_a_compact_bank_needs_to_know_the_images():
    entry = RegionContrast(name="region_contrast", layout="compact")
    with pytest.raises(UserError, match="number of training images"):
        build_objectives([entry], num_classes=3, seed=0)


@pytest.mark.parametrize(
    ("start", "steps", "expected"),
    [(2, 4, [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]), (3, 0, [0, 0, 0, 1, 1, 1, 1, 1])],
)
def test_a_weight_that_rises(start, steps, expected):
    entry = RegionContrast(name="region_contrast", weight=0.5, start_step=start, warmup_steps=steps)
    ((_, weight),) = build_objectives([entry], num_classes=3, seed=0)
    assert [float(weight(step)) for step in range(8)] == pytest.approx(
        [0.5 * factor for factor in expected]
    )
    assert float(Ramp(2.0, start=0, steps=0)(0)) == 2.0


def test_a_number_that_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="entry 'multi_scale' of `contrast`: A pair of"):
        entry = MultiScale(name="multi_scale", cross_scale_pairs=[("c2", "c2")])
        build_objectives([entry], num_classes=3, seed=0)
