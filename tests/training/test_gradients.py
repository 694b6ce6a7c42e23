import keras
import numpy as np
import tensorflow as tf

from kseg.segmenters import build_segmenter
from kseg.training.build import build_objectives
from kseg.training.gradients import with_gradients
from kseg.training.optimizers import SGD
from kseg.training.trainer import SegmentationTrainer, build_step
from tests.tiny_networks import tiny_backbone
from tests.training.all_methods import CONTRAST


def longest_sum(graph):
    """Terms of the longest `AddN` in a graph and in the functions that it calls."""
    definition = graph.as_graph_def()
    nodes = list(definition.node)
    for function in definition.library.function:
        nodes.extend(function.node_def)
    return max((node.attr["N"].i for node in nodes if node.op == "AddN"), default=0)


def test_by_hand_in_a_graph_and_without():
    """`x` is used four times: d/dx (3x + x^2 + 5x + xy) = 8 + 2x + y."""
    x, y, other = (tf.Variable(value) for value in (2.0, 7.0, 1.0))

    def function():
        value = x.read_value()
        return 3.0 * value + value * value + 5.0 * value + value * y, "more"

    @tf.function(autograph=False)
    def in_a_graph():
        (value, more), gradients = with_gradients(function, [x, y, other])
        assert more == "more" and gradients[2] is None
        return value, gradients[:2]

    value, gradients = in_a_graph()
    (alone, more), (*others, none) = with_gradients(function, [x, y, other])
    assert more == "more" and none is None
    assert float(value) == float(alone) == 6.0 + 4.0 + 10.0 + 14.0
    assert [float(g) for g in gradients] == [float(g) for g in others] == [8.0 + 4.0 + 7.0, 2.0]
    assert longest_sum(in_a_graph.get_concrete_function().graph) == 2


def test_the_step_has_no_sum_that_grappler_makes_depend_on_time():
    """UPerNet reads c4 in three places and c5 in six; methods and averages have sums, too."""
    objectives = build_objectives(CONTRAST, num_classes=3, seed=3)
    stages = sorted({stage for objective, _ in objectives for stage in objective.stages})

    def network():
        keras.utils.clear_session(free_memory=False)
        return build_segmenter(tiny_backbone(), "upernet", 3, projections=stages, embedding_dim=8)

    segmenter = network()
    trainer = SegmentationTrainer(
        segmenter, objectives=objectives, clip_norm=1.0, averaged=network()
    )
    trainer.compile(optimizer=SGD(0.01, decay_rate=1e-3))
    step = build_step(trainer, tf.distribute.get_strategy())
    batch = {
        "image": tf.zeros((2, 64, 96, 3), "uint8"),
        "label": tf.constant(np.arange(2 * 64 * 96).reshape(2, 64, 96) % 3, "uint8"),
    }
    assert longest_sum(step.get_concrete_function(batch).graph) == 2
