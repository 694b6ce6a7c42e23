"""Compiles the step of `gpu_study.py` for a GPU that need not be there, and counts what it moves.

    pip install "jax[cuda13]"
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python scripts/benchmarks/gpu_compile.py \
        --plan configs/studies/camvid.json --weights efficientnet-lite2-9656183e.npz --stack 8

Prints a line for each arm: seconds of tracing and compiling on this machine, kernels launched by a
step (those inside its inner loops not counted), bytes that these read and write, the milliseconds
that the bytes take at `--bandwidth`, a lower bound of the step's time, and the memory of
intermediate results. `--groups N` lists the N groups of kernels that move most. Nothing is run.
`--toy` compiles a tiny network for this machine's CPU.
"""

import argparse
import collections
import os
import pathlib
import re
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["KERAS_BACKEND"] = "jax"

# NVIDIA's figures of an H200 for XLA's cost model and limits.
_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""
_CLASSES, _IMAGES, _TOY_IMAGES = 11, (367, 360, 480), (5, 60, 80)  # Of CamVid.
_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
_FREE = {"bitcast", "get-tuple-element", "parameter", "constant", "tuple", "after-all"}


def main(argv=None):
    """Compiles the steps, prints what they move, and returns the exit code."""
    arguments = _parse(argv)
    with tempfile.TemporaryDirectory(prefix="gpu_compile_") as dump:
        _compare(arguments, pathlib.Path(dump))
    return 0


def _compare(arguments, dump):
    """Compiles the step of each arm and prints its line; XLA writes to the folder `dump`."""
    import gpu_study

    flags = [os.environ.get("XLA_FLAGS", ""), f"--xla_dump_to={dump}", "--xla_dump_hlo_as_text"]
    flags += ["--xla_dump_hlo_module_re=.*all_lanes.*"]
    os.environ["XLA_FLAGS"] = " ".join(
        [*flags, *([] if arguments.toy else [gpu_study.WITHOUT_SEARCH])]
    )
    _, jobs = gpu_study.plan_jobs(arguments)
    for job in jobs:
        seconds, memory = _compile(job, arguments)
        text = max(dump.glob("*after_optimizations.txt"), key=lambda f: f.stat().st_mtime)
        kernels = list(kernels_of_loop(text.read_text()))
        text.unlink()
        moved = sum(kernel["bytes"] for kernel in kernels)
        print(
            f"{job['arm']:18s} traced in {seconds[0]:.0f} s, compiled in {seconds[1]:.0f} s; a "
            f"step of {arguments.stack} runs: {len(kernels)} kernels, {moved / 1e9:.1f} GB, "
            f"{1e3 * moved / arguments.bandwidth:.1f} ms; {memory / 1e9:.1f} GB in memory",
            flush=True,
        )
        groups = collections.defaultdict(lambda: [0, 0])
        for kernel in kernels:
            group = groups[kernel["kind"], kernel["part"]]
            group[0] += 1
            group[1] += kernel["bytes"]
        largest = sorted(groups.items(), key=lambda item: -item[1][1])[: arguments.groups]
        for (kind, part), (count, size) in largest:
            print(f"    {count:5d} {size / 1e9:7.2f} GB  {kind}: {part}")


def _parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", help="a study's file (docs/studies.md)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="default: all")
    parser.add_argument("--stack", type=int, default=8, metavar="N", help="runs of an arm at once")
    parser.add_argument("--weights", help="replaces model.backbone.weights of the config")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--target", help="text file, XLA's `GpuTargetConfigProto`; default: H200")
    parser.add_argument("--bandwidth", type=float, default=4e12, help="bytes per second")
    parser.add_argument("--groups", type=int, default=0, metavar="N")
    parser.add_argument("--toy", action="store_true", help="a tiny network, compiled for the CPU")
    parser.set_defaults(config=None, tune=None, seeds=[0])
    arguments = parser.parse_args(argv)
    if arguments.toy:
        arguments.plan, arguments.weights, arguments.stack = None, None, 2
        arguments.config = str(ROOT / "configs" / "base" / "camvid_small.json")
    elif not arguments.plan:
        parser.error("--plan is needed")
    return arguments


def _compile(job, arguments):
    """Compiles the step of an arm.

    Returns:
        `((tracing, compiling), memory)`: seconds, and bytes of temporary buffers.
    """
    import jax

    host = jax.devices("cpu")[0]
    from _gpu_study_worker import Program, example_arguments, use_toy_backbone
    from jax.sharding import SingleDeviceSharding

    from kseg import config as config_module
    from kseg.classes import Classes
    from kseg.contrast import tiles

    if arguments.toy:
        use_toy_backbone()
        device, images = host, _TOY_IMAGES
    else:
        tiles.on_accelerator = lambda: True
        device, images = _absent_device(arguments.target), _IMAGES
    sharding = SingleDeviceSharding(device)
    experiment = config_module.parse(job["config"], source=job["arm"])
    worker = argparse.Namespace(
        device=host,
        classes=Classes(
            names=[str(i) for i in range(_CLASSES)],
            palette=[[0, 0, 0]] * _CLASSES,
            training_images=[images[0]] * _CLASSES,
            training_pixels=[10**6] * _CLASSES,
        ),
        spec={
            "chunk": 20,
            "stack": arguments.stack,
            "depthwise": "grouped",
            "toy": arguments.toy,
            "weights": arguments.weights,
            "features": False,
        },
    )
    start = time.time()
    program = Program(worker, experiment)
    values = example_arguments(program, images=images)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), values
    )
    lowered = program.many_steps.lower(*abstract)
    middle = time.time()
    compiled = lowered.compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    return (middle - start, time.time() - middle), memory


def _absent_device(target):
    """Returns a device of XLA's GPU compiler, from the file of its configuration or an H200's."""
    from jax.experimental import topologies

    target = pathlib.Path(target).read_text() if target else _TARGET
    topology = topologies.get_topology_desc("", "cuda", target_config=target, topology="1x1x1")
    return topology.devices[0]


def kernels_of_loop(text):
    """Lists the kernels of the longest loop body of a compiled module.

    Args:
        text: str, XLA's dump of the module after optimization.

    Yields:
        dict of `kind` (such as `"fusion kLoop"`, or the target of a custom call), `part` (the
        forward or backward pass of a layer) and `bytes`, read and written; tuples that a kernel
        passes on do not count.
    """
    bodies, current = {}, None
    for line in text.split("\n"):
        if line and not line.startswith((" ", "}")) and line.rstrip().endswith("{"):
            current = bodies.setdefault(line.split("(")[0].strip(), [])
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    loops = {name: lines for name, lines in bodies.items() if not name.startswith("ENTRY")}
    shapes = {}
    for line in max(loops.values(), key=lambda lines: sum(map(len, lines))):
        match = re.match(r"\s+(?:ROOT )?(%?[\w.\-]+) = (\(?.*?\)?) ([a-z][\w\-]*)\((.*)", line)
        if match is None:
            continue
        name, shape, operation, rest = match.groups()
        shapes[name] = shape
        if operation in _FREE:
            continue
        operands = [shapes.get(n, "") for n in re.findall(r"%[\w.\-]+", rest.split(")")[0])]
        kind = operation
        if operation == "fusion":
            kind += " " + re.search(r"kind=(\w+)", line)[1]
        elif operation == "custom-call":
            kind = re.search(r'custom_call_target="([^"]+)"', line)[1]
            shape = re.sub(r"\b[su]8\[\d+\]", "", shape)  # Workspace of cuBLAS or cuDNN.
        operands = [operand for operand in operands if not operand.startswith("(")]
        yield {"kind": kind, "part": _part(line), "bytes": sum(map(_size, [shape, *operands]))}


def _part(line):
    found = re.search(r'op_name="([^"]*)"', line)
    path = found[1].split("/") if found else [""]
    layer = next((p for p in path if re.search(r"conv|upernet|embedding|entropy|aux", p)), path[-1])
    layer = re.sub(r"\d+", "N", re.sub(r"transpose\(jvp\((.*?)\)\)|jvp\((.*?)\)", r"\1\2", layer))
    return f"{'backward' if 'transpose(' in line else 'forward'} {layer}"


def _size(shape):
    total = 0
    for dtype, dimensions in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
        count = 1
        for dimension in filter(None, dimensions.split(",")):
            count *= int(dimension)
        total += count * _BYTES.get(dtype, 0)
    return total


if __name__ == "__main__":
    sys.exit(main())
