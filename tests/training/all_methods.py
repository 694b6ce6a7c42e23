"""Trains a tiny network with every loss and method at once on some devices, and writes all state.

python -m tests.training.all_methods DEVICES FILE.npz: its own process, because TensorFlow fixes the
number of devices at start.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from kseg.config import schema
from kseg.runs import checkpoints
from kseg.segmenters import build_segmenter
from kseg.training.build import build_losses, build_objectives
from kseg.training.distribution import build_strategy
from kseg.training.optimizers import SGD
from kseg.training.trainer import SegmentationTrainer, build_step
from tests.tiny_networks import tiny_backbone

NUM_CLASSES = 3
BATCH, HEIGHT, WIDTH, STEPS = 4, 64, 96, 3
SCALES = {"c2": 1.0, "c4": 0.5}
CONTRAST = [
    schema.MultiScale(
        name="multi_scale", scale_weights=SCALES, cross_scale_pairs=[("c2", "c4")], max_anchors=90
    ),
    schema.RegionContrast(name="region_contrast", capacity=5, start_step=1, warmup_steps=3),
    schema.PixelContrast(
        name="pixel_contrast",
        memory="both",
        pixel_capacity=20,
        region_capacity=7,
        pixels_per_image=3,
        max_keys=40,
        max_anchors=60,
    ),
    schema.Contextrast(
        name="contextrast",
        layer_weights=SCALES,
        reference="c4",
        max_samples=100,
        min_negatives=10,
    ),
]


def run_steps(strategy):
    """Trains on seeded batches; gives a dict of arrays: each step's terms, then all variables."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        objectives = build_objectives(CONTRAST, num_classes=NUM_CLASSES, seed=3)
        synchronized = strategy.num_replicas_in_sync > 1
        segmenter = build_segmenter(
            tiny_backbone(synchronized_batch_norm=synchronized),
            "ocr",
            NUM_CLASSES,
            head_arguments={"channels": 8, "key_channels": 4, "dropout": 0.0},
            projections=sorted({s for objective, _ in objectives for s in objective.stages}),
            embedding_dim=8,
            synchronized_batch_norm=synchronized,
        )
        losses = schema.Losses.model_validate(
            {
                "cross_entropy": {"class_weights": [1, 2, 3], "label_smoothing": 0.1},
                "ohem": {"min_kept": 9000},
                "lovasz": {},
            }
        )
        losses = build_losses(losses, segmenter, num_classes=NUM_CLASSES)
        trainer = SegmentationTrainer(segmenter, losses=losses, objectives=objectives)
        # Small steps: batch norm over the few places of c5 multiplies rounding errors.
        trainer.compile(optimizer=SGD(1e-3, name="sgd"))
    step = build_step(trainer, strategy)
    found = {}
    for i, batch in enumerate(strategy.experimental_distribute_dataset(batches())):
        found |= {f"step {i} {name}": float(value) for name, value in step(batch).items()}
    assert step.experimental_get_tracing_count() == 1
    variables = checkpoints.training_variables(trainer)
    return found | {name: variable.numpy() for name, variable in variables.items()}


def batches():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, (STEPS, BATCH, HEIGHT // 16, WIDTH // 16))
    labels = labels.repeat(16, axis=2).repeat(16, axis=3).astype("uint8")
    labels[:, 0, : HEIGHT // 2] = 255  # Replicas have unequal numbers of valid pixels,
    labels[0, 1:] = labels[0, 1:] % 2  # and a class is on one of them only.
    noise = rng.integers(0, 80, (STEPS, BATCH, HEIGHT, WIDTH, 3))
    images = (labels[..., None].clip(0, 3) * 50 + noise).astype("uint8")
    return tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})


if __name__ == "__main__":
    devices = int(sys.argv[1])
    # Collectives of four devices wait for each other on as many threads as there are cores.
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
    np.savez(sys.argv[2], **run_steps(build_strategy(devices)))
