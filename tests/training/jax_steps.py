"""The same training steps on TensorFlow or JAX, for a test that compares them."""

import zlib

import keras
import numpy as np

from kseg import config
from kseg.segmenters import build_segmenter
from kseg.training.build import build_distortion, build_losses, build_objectives, build_schedule
from tests.tiny_networks import tiny_resnet

NUM_CLASSES = 3
SIZE = (64, 96)
STEPS = 4
# Adam divides small gradients by themselves: its epsilon keeps rounding from becoming a step.
CASES = {
    "sgd": {
        "head": {"name": "ocr", "channels": 8, "key_channels": 4, "dropout": 0.0},
        "losses": {
            "cross_entropy": {"class_weights": [1.0, 2.0, 0.5], "label_smoothing": 0.1},
            "auxiliary": {"weight": 0.4},
        },
        "contrast": [
            {
                "name": "multi_scale",
                "min_count": 1,
                "max_anchors": 60,
                "projection": "drawn",
            },
            {"name": "region_contrast", "capacity": 3},
        ],
        "optimizer": {
            "name": "sgd",
            "learning_rate": 0.02,
            "nesterov": True,
            "learning_rate_factors": {"backbone": 0.1, "projectors": 2.0},
        },
        "schedule": {"name": "poly", "warmup_steps": 2},
        "clip_norm": None,
    },
    "adamw": {
        "head": {"name": "upernet", "channels": 8, "aux_channels": 4, "dropout": 0.0},
        "losses": {
            "cross_entropy": {"weight": 0.0},
            "ohem": {"min_kept": 500},
            "lovasz": {"weight": 0.5},
            "auxiliary": None,
        },
        "contrast": [
            {"name": "contextrast", "max_samples": 60, "min_negatives": 10},
            {
                "name": "pixel_contrast",
                "weight": 0.2,
                "start_step": 1,
                "warmup_steps": 2,
                "memory": "both",
                "pixel_capacity": 8,
                "region_capacity": 4,
                "max_anchors": 60,
                "max_keys": 12,
            },
        ],
        "optimizer": {"name": "adamw", "learning_rate": 0.002, "epsilon": 1e-3},
        "schedule": {"name": "linear", "warmup_steps": 1},
        "clip_norm": 0.5,
    },
    "mixed_bfloat16": {
        "head": {"name": "ocr", "channels": 8, "key_channels": 4, "dropout": 0.0},
        "losses": {},
        "contrast": [],
        "optimizer": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.0},
        "schedule": {"name": "poly"},
        "clip_norm": 1.0,
    },
}


def experiment(case):
    """The config of a case."""
    sections = dict(CASES[case])
    values = {
        "name": case,
        "model": {
            "backbone": {"name": "resnet18"},
            "head": sections.pop("head"),
            "embedding_dim": 8,
            "projector_layers": 1,
        },
        "data": {"dataset": "none", "crop_size": SIZE, "batch_size": 2, "blur": {}},
        "train": {
            "steps": 10,
            "clip_norm": sections.pop("clip_norm"),
            "precision": "mixed_bfloat16" if case == "mixed_bfloat16" else "float32",
        },
        **sections,
    }
    return config.parse(values, source="test")


def parts(case):
    """Builds what both trainers take.

    Returns:
        `(experiment, segmenter, arguments)`.
    """
    settings = experiment(case)
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(settings.train.precision)
    keras.random.uniform, keras.random.randint = _fixed_uniform, _fixed_randint
    objectives = build_objectives(settings.contrast, num_classes=NUM_CLASSES, seed=5)
    backbone = tiny_resnet(block="basic", channels=(4, 6, 8, 10))
    model = settings.model
    segmenter = build_segmenter(
        backbone,
        model.head.name,
        NUM_CLASSES,
        head_arguments=model.head.model_dump(exclude={"name"}),
        projections=sorted({stage for o, _ in objectives for stage in o.stages}),
        embedding_dim=model.embedding_dim,
        projector_layers=model.projector_layers,
    )
    losses = build_losses(settings.losses, segmenter, num_classes=NUM_CLASSES)
    if case == "sgd":  # What a program of one's own may have.
        losses["cross_entropy"] = (losses["cross_entropy"][0].loss, 0.5)
        segmenter.trainable_variables[0].regularizer = keras.regularizers.L2(0.1)
    arguments = {
        "losses": losses,
        "objectives": objectives,
        "clip_norm": settings.train.clip_norm,
        "distortion": build_distortion(settings.data),
    }
    return settings, segmenter, arguments


def _fixed_uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
    """The backends' generators differ: numbers that depend on the shape alone stand for theirs."""
    numbers = minval + (maxval - minval) * _generator(shape).random(shape)
    return keras.ops.convert_to_tensor(numbers, dtype or "float32")


def _fixed_randint(shape, minval, maxval, dtype="int32", seed=None):
    return keras.ops.convert_to_tensor(_generator(shape).integers(minval, maxval, shape), dtype)


def _generator(shape):
    return np.random.default_rng(zlib.crc32(repr(tuple(map(int, shape))).encode()))


def batch(number, case):
    """Batch `number`: blocks of classes with matching colours and noise, some of it ignored."""
    rng = np.random.default_rng(number)
    labels = rng.integers(0, NUM_CLASSES, (2, SIZE[0] // 8, SIZE[1] // 8))
    labels = np.kron(labels, np.ones((1, 8, 8), int)).astype("uint8")
    noise = rng.integers(0, 60, (*labels.shape, 3))
    images = (60 * labels[..., None] + noise).astype("uint8")
    labels[0, :10] = 255
    draws = rng.random((2, 6)).astype("float32")
    if case == "sgd":
        weights = np.array([0.5, 2.0], "float32")
        labels = labels[..., None]
        return {"image": images, "label": labels, "sample_weight": weights, "draws": draws}
    return {"image": images, "label": labels, "draws": draws}


def named(segmenter, objectives):
    """Variables that both backends have, by a name that does not depend on them."""
    found = {f"model/{v.path}": v for v in segmenter.weights}
    for objective in objectives:
        found |= {f"{objective.name}/{i}": v for i, v in enumerate(objective.weights)}
    return found


def run_on_jax(case, initial, result):
    """Trains on JAX from the weights in `initial`, and writes logs and variables to `result`."""
    import jax

    from kseg.training.build import build_updates
    from kseg.training.jax_trainer import JaxTrainer
    from kseg.training.learning_rate_factors import learning_rate_factors, parts_of

    settings, segmenter, arguments = parts(case)
    trainer = JaxTrainer(
        segmenter,
        updates=build_updates(settings.optimizer),
        schedule=build_schedule(
            settings.schedule,
            learning_rate=settings.optimizer.learning_rate,
            steps=settings.train.steps,
        ),
        learning_rate_factors=learning_rate_factors(
            parts_of(segmenter), settings.optimizer.learning_rate_factors
        ),
        **arguments,
    )
    variables = named(segmenter, trainer.objectives)
    with np.load(initial) as file:
        assert set(file.files) == set(variables), set(file.files) ^ set(variables)
        for name, variable in variables.items():
            variable.assign(file[name])
    step, state = jax.jit(trainer.step), trainer.initial_state()
    logs = []
    for number in range(STEPS):
        state, of_step = step(state, batch(number, case))
        logs.append({name: float(value) for name, value in of_step.items()})
    assert int(state["step"]) == STEPS
    trainer.assign(state)
    arrays = {name: np.asarray(variable.value) for name, variable in variables.items()}
    for name in logs[0]:
        arrays[f"log/{name}"] = np.array([of_step[name] for of_step in logs])
    np.savez(result, **arrays)
