"""Time, memory and size of a training step with each method, against cross-entropy only.

The first table is of whole training steps with full memory banks, the second of the objectives
alone: forward and backward on random outputs of a network. Times are the shortest of several
rounds, in which the methods alternate, each in a process of its own; on a busy machine compare the
processor's seconds. Memory is measured in further processes for each method: the peak of the
process, with the network, its graph and what the C library retains, and the most that tensors take
during a step beyond the weights, which is what counts on an accelerator.
"""

import os
import statistics

import _measuring
import _networks

from kseg.commands import console

STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32, "features": 4}  # Of HRNet.
COLUMNS = ("seconds", "processor", "peak", "tensors", "weights", "flops")


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    _networks.add_arguments(parser, "hrnet_w18", (256, 512), 4)
    parser.add_argument(
        "--network",
        choices=_networks.NETWORKS,
        help="instead of --backbone and --head; the objectives alone are left out",
    )
    parser.add_argument("--rounds", type=_measuring.positive, default=6)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="METHOD",
        help=f"some of: {', '.join(_networks.METHODS)}; the first is what the others are compared "
        "with",
    )
    parser.add_argument(
        "--max-anchors",
        type=_measuring.positive,
        metavar="N",
        help="anchors of MS/CS; the paper's 10,000 of 8 crops of 512 x 1024 are the same share as "
        "1,250 of 4 crops of 256 x 512, or 625 of 2",
    )
    parser.add_argument(
        "--objective-batches",
        type=_measuring.positive,
        nargs="+",
        metavar="N",
        help="batch sizes of the objectives alone; default: 1, 2 and 4 times --batch",
    )
    toy = {
        **_networks.TOY_ARGUMENTS,
        "rounds": 1,
        "only": ["cross-entropy only", "RegionContrast"],
        "objective_batches": [2],
    }
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def compare(arguments):
    """Prints both tables."""
    methods = _measuring.choose(arguments.only, _networks.METHODS)
    if arguments.network:
        settings = _networks.NETWORKS[arguments.network]
        vars(arguments).update({k: v for k, v in settings.items() if k != "size"})
    compare_steps(arguments, methods)
    if arguments.network:  # Their maps have the sizes of HRNet's.
        return
    print("\nobjectives alone, forward and backward; extra memory above inputs and gradients")
    batches = arguments.objective_batches or [factor * arguments.batch for factor in (1, 2, 4)]
    print(f"{'':<22}" + "".join(f"{f'batch {batch}: s':>14}{'MB':>8}" for batch in batches))
    for method in methods:
        if not _networks.METHODS[method] or method.endswith("drawn"):  # Maps are inputs here.
            continue
        cells = ""
        for batch in batches:
            found = _measuring.in_new_process(
                measure, arguments, method=method, part="objective", batch=batch
            )
            cells += f"{found['seconds']:>14.3f}{found['megabytes']:>8.0f}"
        print(f"{method:<22}{cells}", flush=True)


def compare_steps(arguments, methods):
    """Prints the table of training steps."""
    processes = {}
    for method in methods:
        command = _measuring.command(measure, arguments, method=method, part="step")
        processes[method] = _measuring.TimedProcess(command)
    for _ in range(arguments.rounds):  # The methods alternate, so that noise affects all alike.
        for process in processes.values():
            process.measure()
    for process in processes.values():
        process.close()
    height, width = arguments.size
    print(
        f"training step of {arguments.head} on {arguments.backbone}, {arguments.batch} x {height} "
        f"x {width}, {arguments.precision}, banks full"
    )
    print(
        f"{'':<22}{'seconds':>9}{'ratio':>8}{'CPU s':>8}{'peak MB':>9}{'tensors MB':>12}"
        f"{'M weights':>11}{'GFLOPs':>9}"
    )
    plain = None
    for method, process in processes.items():
        memory = {
            part: _measuring.in_new_process(measure, arguments, method=method, part=part)
            for part in ("peak", "tensors")
        }
        found = {
            **dict(zip(("seconds", "processor"), process.best(), strict=True)),
            **{part: values["megabytes"] for part, values in memory.items()},
            **process.found,
        }
        plain = plain or found
        print(
            f"{method:<22}{found['seconds']:>9.3f}{found['seconds'] / plain['seconds']:>8.3f}"
            f"{found['processor']:>8.3f}{found['peak']:>9.0f}{found['tensors']:>12.0f}"
            f"{found['weights']:>11.3f}{found['flops']:>9.2f}   "
            + ", ".join(f"{k} {_increase(found[k], plain[k])}" for k in COLUMNS),
            flush=True,
        )


def _increase(value, base):
    return f"{100 * (value / base - 1):+.2f} %" if base else "-"


def measure(arguments):
    """Measures the time or the memory of a training step, or an objective alone."""
    parts = {
        "step": measure_step,
        "peak": measure_peak,
        "tensors": measure_tensors,
        "objective": measure_objective,
    }
    return parts[arguments.part](arguments)


def measure_step(arguments):
    """Times a training step on request, with full memory banks."""
    from kseg.analysis.complexity import count_parameters
    from kseg.analysis.measuring import fill_banks

    def prepare():
        batch = _networks.street_batch(arguments)
        trainer, step = _networks.build_step(
            arguments, _networks.contrast_of(arguments, arguments.method)
        )
        fill_banks(trainer.objectives)
        found = {
            "weights": count_parameters(trainer.segmenter) / 1e6,
            "flops": _networks.forward_gflops(trainer.segmenter, arguments.size),
        }
        return lambda: float(step(batch)["loss"]), found

    _measuring.time_on_request(prepare)


def measure_peak(arguments):
    """Measures the memory that building a network and two of its training steps take."""
    from kseg.analysis.measuring import PeakMemory, fill_banks

    batch = _networks.street_batch(arguments)
    with PeakMemory() as memory:
        trainer, step = _networks.build_step(
            arguments, _networks.contrast_of(arguments, arguments.method)
        )
        fill_banks(trainer.objectives)
        for _ in range(2):
            float(step(batch)["loss"])
    return {"megabytes": memory.megabytes}


def measure_tensors(arguments):
    """Measures the memory of a step's tensors, the median of five steps after the first."""
    os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = "true"  # The allocator that reports to the profiler.
    from kseg.analysis.measuring import fill_banks

    batch = _networks.street_batch(arguments)
    trainer, step = _networks.build_step(
        arguments, _networks.contrast_of(arguments, arguments.method)
    )
    fill_banks(trainer.objectives)
    float(step(batch)["loss"])
    peaks = [_measuring.peak_of_tensors(lambda: float(step(batch)["loss"])) for _ in range(5)]
    return {"megabytes": statistics.median(peaks)}


def measure_objective(arguments):
    """Measures an objective on random outputs of HRNet's sizes, without a network."""
    import numpy as np
    import tensorflow as tf

    from kseg.analysis.measuring import PeakMemory, best_seconds, fill_banks

    labels = _networks.street_batch(arguments)["label"]
    contrast = _networks.contrast_of(arguments, arguments.method)
    ((objective, _),) = _networks.build_objectives(arguments, contrast)
    rng = np.random.default_rng(0)

    def output(stride, channels):
        shape = (arguments.batch, *(size // stride for size in arguments.size), channels)
        return tf.constant(rng.standard_normal(shape, dtype="float32"))

    outputs = {"logits": output(4, arguments.classes), "features": output(4, 256)}
    for stage in objective.stages:
        embeddings = tf.math.l2_normalize(output(STRIDES[stage], 256), axis=-1)
        outputs[f"embedding_{stage}"] = embeddings
    objective.prepare(outputs)
    fill_banks([objective])

    @tf.function(autograph=False)
    def compute(outputs):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            terms, found = objective.contrast(outputs, labels)
            total = tf.add_n(list(terms.values()))
        gradients = tape.gradient(total, outputs, unconnected_gradients="zero")
        objective.remember(found)
        return total, gradients

    compute.get_concrete_function(outputs)
    with PeakMemory() as memory:
        seconds = best_seconds(lambda: float(compute(outputs)[0]), 5)
    return {"seconds": seconds, "megabytes": memory.megabytes}


if __name__ == "__main__":
    console.run(main)
