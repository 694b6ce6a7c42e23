"""Every method on every kind of network that the papers use it on: one training step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.config import schema
from kseg.segmenters import build_segmenter
from kseg.training.build import build_objectives
from kseg.training.optimizers import SGD
from kseg.training.trainer import SegmentationTrainer

DILATED = ("resnet18", {"output_stride": 8}, "deeplabv3", {"channels": 8, "aspp_channels": 8})
SWIN = ("swin_t", {}, "upernet", {"channels": 16})
FPN = {"fpn_c2": 1.0, "fpn_c3": 0.7, "fpn_c4": 0.4, "fpn_c5": 0.1}


@pytest.mark.parametrize(
    ("network", "contrast"),
    [
        (
            DILATED,  # MS/CS, Sec. 4.3: C2, C3, C5; pairs (C2, C5), (C2, C3).
            schema.MultiScale(
                name="multi_scale",
                scale_weights={"c2": 1.0, "c3": 0.7, "c5": 0.7},
                cross_scale_pairs=[("c2", "c5"), ("c2", "c3")],
            ),
        ),
        (DILATED, schema.RegionContrast(name="region_contrast")),
        (SWIN, schema.MultiScale(name="multi_scale", min_count=1)),
        (
            SWIN,
            schema.MultiScale(
                name="multi_scale",
                scale_weights=FPN,
                min_count=1,
                cross_scale_pairs=[("fpn_c2", "fpn_c5"), ("fpn_c2", "fpn_c4")],
            ),
        ),
        (SWIN, schema.Contextrast(name="contextrast", layer_weights=FPN, reference="fpn_c5")),
    ],
)
def test_a_step(network, contrast):
    backbone, backbone_arguments, head, head_arguments = network
    objectives = build_objectives([contrast], num_classes=3, seed=0)
    segmenter = build_segmenter(
        backbone,
        head,
        3,
        backbone_arguments=backbone_arguments,
        head_arguments=head_arguments,
        projections=contrast.stages,
        embedding_dim=8,
    )
    trainer = SegmentationTrainer(segmenter, objectives=objectives)
    trainer.compile(optimizer=SGD(0.01))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 96, 3)).astype("uint8")
    labels = np.kron(rng.integers(0, 3, (2, 2, 3)), np.ones((32, 32), int)).astype("uint8")
    batch = {"image": tf.constant(images), "label": tf.constant(labels)}
    projectors = [w for w in segmenter.trainable_weights if w.path.startswith("embedding_")]
    before = [np.array(w) for w in projectors]
    for _ in range(2):
        logs = {name: float(value) for name, value in trainer.train_step(batch).items()}
    terms = [value for name, value in logs.items() if name.startswith(contrast.name)]
    assert np.isfinite(logs["loss"])
    assert min(terms) > 0
    assert len(projectors) == 10 * len(contrast.stages)
    for weight, value in zip(projectors, before, strict=True):
        assert not np.array_equal(weight, value), weight.path
    keras.backend.clear_session(free_memory=False)
