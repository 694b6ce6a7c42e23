"""Processor time of a training step with keys of the config, against the step without them.

All steps are built in one process and timed in turn, on one batch of the synthetic street scenes at
the config's crop size. The seconds are processor seconds of all threads, the shortest of the
rounds: work beside it adds to them, though less than to the time on the clock. Keys that cost
nothing in a step (epochs, patience, callbacks) are left out.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import _measuring
import _networks

from kseg.commands import console

VARIANTS = {
    "plain": [],
    "schedule cosine": ["schedule.name=cosine"],
    "train.restarts [100, 100]": ["train.restarts=[100,100]"],
    "train.ema": ["train.ema.decay=0.999"],
    "train.accumulate 2": ["train.accumulate=2"],
    "train.accumulate 4": ["train.accumulate=4"],
    "model.freeze backbone": ['model.freeze=["backbone"]'],
    "model.freeze c3": ['model.freeze=["c3"]'],
    "model.freeze batch_norms": ['model.freeze=["batch_norms"]'],
    # Not for dilated convolutions on a CPU.
    "train.precision mixed_float16": ["train.precision=mixed_float16"],
}


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    parser.add_argument("--config", default="camvid_deeplabv3_efficientnetlite0")
    parser.add_argument("--batch", type=_measuring.positive, default=8)
    parser.add_argument("--rounds", type=_measuring.positive, default=5)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS)[:-1], choices=list(VARIANTS))
    parser.set_defaults(size=None)
    toy = {"batch": 2, "rounds": 1, "only": ["plain", "schedule cosine"], "size": (32, 32)}
    return _measuring.main(parser, argv, compare=compare, toy=toy)


def compare(arguments):
    """Prints processor seconds of a step and of an evaluated image."""
    from kseg import config as config_module

    size = arguments.size or config_module.load(arguments.config).data.crop_size
    height, width = size
    batch = _networks.street_batch(argparse.Namespace(**{**vars(arguments), "size": size}))
    names = list(dict.fromkeys(["plain", *arguments.only]))
    steps = {}
    for name in names:
        start = time.process_time()
        steps[name] = _build(arguments, batch, VARIANTS[name])
        print(f"built {name}: {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
    seconds = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    print(f"training step of {arguments.config}, {arguments.batch} x {height} x {width}")
    print(f"{'key':<32}{'CPU s':>10}{'of plain':>10}")
    plain = min(seconds["plain"])
    for name, found in seconds.items():
        print(f"{name:<32}{min(found):>10.2f}{min(found) / plain:>10.2f}")


def _build(arguments, batch, overrides):
    """Builds a config's training step on a batch, and takes the first step."""
    import numpy as np
    import tensorflow as tf

    from kseg import config as config_module
    from kseg.classes import Classes
    from kseg.runs import Run
    from kseg.training.build import build_trainer
    from kseg.training.trainer import build_step

    config = config_module.load(
        arguments.config,
        [f"data.batch_size={arguments.batch}", "schedule.warmup_steps=0", *overrides],
    )
    names = [f"class {number}" for number in range(11)]
    strategy = tf.distribute.get_strategy()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(pathlib.Path(folder), config, Classes(names, [[0, 0, 0]] * len(names)))
        trainer = build_trainer(run, strategy)
    step = build_step(trainer, strategy)
    draws = trainer.distortion.NUM_DRAWS if trainer.distortion else 0
    values = np.random.default_rng(0).random((arguments.batch, draws), dtype="float32")
    batch = {**batch, "draws": tf.constant(values)}

    def one_step():
        return {name: float(value) for name, value in step(batch).items()}

    for _ in range(2):  # The second one still allocates.
        one_step()
    return one_step


if __name__ == "__main__":
    console.run(main)
