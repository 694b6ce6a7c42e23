"""Devices and distribution strategies: the choice for a run, and agreement between workers."""

import contextlib
import functools
import itertools
import json
import os
import socket
import sys

import numpy as np
import tensorflow as tf

from kseg.errors import UserError, option

_MIRRORED_COUNT = itertools.count(1)


def describe_devices(strategy, precision="float32", *, driver="/proc/driver/nvidia/version"):
    """Describes the devices of a strategy in one line.

    Args:
        strategy: `tf.distribute.Strategy`.
        precision: `train.precision` of a config.
        driver: file that exists if the machine has an NVIDIA driver.

    Returns:
        str, with a note if the machine has a GPU that TensorFlow cannot use, or the devices are
        slow at the precision.
    """
    count, gpus = strategy.num_replicas_in_sync, tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        return f"device: {count} x {name}"
    line = f"device: CPU, {os.cpu_count()} cores" + (f", {count} replicas" if count > 1 else "")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if os.path.exists(driver) and not hidden:
        line += (
            "; this machine has an NVIDIA driver, but TensorFlow finds no GPU that it can use: "
            "pip install 'tensorflow[and-cuda]'"
        )
    if precision == "mixed_float16":
        line += "; float16 is slow on a CPU: mixed_bfloat16 or float32 is much faster"
    return line


def build_strategy(devices=None, cluster=None):
    """Chooses the distribution strategy; must run before anything is computed.

    Several devices get MirroredStrategy, a single one the default strategy, a cluster
    MultiWorkerMirroredStrategy over all GPUs of its machines, or over their CPUs.

    Args:
        devices: int, number of devices, or None: all. GPUs if there are any, else logical CPUs.
        cluster: `kseg.training.cluster.Cluster` or None.

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        UserError: if there are fewer devices, or `devices` is set in a cluster.
    """
    if cluster:
        if devices is not None:
            raise UserError(
                "`train.devices` must be null where TF_CONFIG names several machines: each uses "
                f"all its GPUs. Received: {devices}. Set CUDA_VISIBLE_DEVICES to use fewer"
            )
        _check_port(cluster.address)
        print(
            f"worker {cluster.worker} of {cluster.num_workers}, {cluster.address}: waiting until "
            "all the others have started",
            file=sys.stderr,
            flush=True,
        )
        try:
            return _several_workers()
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            raise UserError(
                f"worker {cluster.worker} of {cluster.num_workers} could not join the others. "
                "TF_CONFIG must name the same machines on all of them, each with a port that is "
                f"free there. TensorFlow says: {' '.join(str(error).split())[:300]}"
            ) from None
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    if devices is not None and devices > len(names):
        raise UserError(
            f"`train.devices` must be at most the number of {kind}s here, {len(names)}. "
            f"Received: {devices}. Use null for all of them"
        )
    names = names[:devices]
    return _mirrored(names) if len(names) > 1 else tf.distribute.get_strategy()


@functools.cache
def _several_workers():
    """Joins the cluster, which TensorFlow allows only once per process."""
    return tf.distribute.MultiWorkerMirroredStrategy()


def _mirrored(devices):
    """Builds a MirroredStrategy whose collectives are its own.

    TensorFlow counts the keys of collectives from the same start in each strategy but keeps their
    shapes for the life of the process: the second strategy of a notebook would end in "Shape
    mismatch in the collective instance", or wait for the devices of the first.
    """
    apart = {"_collective_key_base": 1000 + next(_MIRRORED_COUNT)}
    return type("MirroredStrategy", (tf.distribute.MirroredStrategy,), apart)(devices)


def _check_port(address):
    """Rejects a port that is in use, before the other workers wait for this one."""
    try:
        port = int(address.rpartition(":")[2])
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"This worker's address in TF_CONFIG must be host:port with a free port of this "
            f"machine. Received: {address} ({getattr(error, 'strerror', None) or error}). Stop the "
            "program that uses it, or name another port on all workers"
        ) from None


def check_agreement(strategy, cluster, settings):
    """Checks that all workers of a cluster train with the same settings; all must call it.

    Args:
        strategy: `tf.distribute.Strategy`.
        cluster: `kseg.training.cluster.Cluster`.
        settings: flat JSON-able dict of this worker's values that must be equal on all workers.

    Raises:
        UserError: on every worker, naming a worker and the keys in which it differs from worker 0.
    """
    everybody = [json.loads(text) for text in _exchange(strategy, cluster, json.dumps(settings))]
    for worker, theirs in enumerate(everybody):
        keys = sorted({*everybody[0], *theirs})
        differing = [key for key in keys if everybody[0].get(key) != theirs.get(key)]
        if differing:
            _wait_for_all(strategy, cluster)
            shown = "; ".join(
                f"{key} is {everybody[0].get(key)} on worker 0 and {theirs.get(key)} on worker "
                f"{worker}"
                for key in differing[:5]
            )
            more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise UserError(
                f"All workers must train the same. {shown}{more}. Start all of them with the same "
                f"config, {option('overrides')} and {option('run')}, and the same prepared data"
            )


def _wait_for_all(strategy, cluster):
    """Waits until every worker has received all data, which is lost when its sender ends."""
    with contextlib.suppress(tf.errors.OpError):  # Another worker has received all and ended.
        _sum_of_slots(strategy, cluster, np.zeros(1, "float32"))


def _exchange(strategy, cluster, text):
    """Returns the texts of all workers, in the order of their indices."""
    content = text.encode()
    lengths = _sum_of_slots(strategy, cluster, np.array([len(content)], "float32"))
    longest = int(lengths.max())
    padded = np.zeros(longest, "float32")  # Every collective implementation supports floats.
    padded[: len(content)] = np.frombuffer(content, "uint8")
    everybody = _sum_of_slots(strategy, cluster, padded).astype("uint8")
    sizes = lengths[:, 0].astype(int)
    return [row[:size].tobytes().decode() for row, size in zip(everybody, sizes, strict=True)]


def _sum_of_slots(strategy, cluster, vector):
    """Stacks one float32 vector of each worker, `(num_workers, size)`."""
    slots = np.zeros((cluster.num_workers, len(vector)), "float32")
    slots[cluster.worker] = vector
    local = strategy.num_replicas_in_sync // cluster.num_workers

    def total():
        context = tf.distribute.get_replica_context()
        is_first = context.replica_id_in_sync_group % local == 0
        part = tf.where(is_first, tf.constant(slots), tf.zeros_like(slots))
        return context.all_reduce(tf.distribute.ReduceOp.SUM, part)

    stacked = strategy.run(tf.function(total, autograph=False))
    return strategy.experimental_local_results(stacked)[0].numpy()


def make_reproducible():
    """Makes the same graph compute bit-identical results in different processes on one machine.

    Turns off Grappler's arithmetic optimizer. It iterates over hash tables whose order differs
    between processes, and so does the order in which it factors and combines sums and products. On
    HRNet-W48 its rewrites save neither time nor memory (docs/benchmarks.md). Constant folding,
    remapping to fused kernels and layout optimization stay on. Applies to every graph that this
    process compiles afterwards. `kseg.training.gradients` provides the other half.
    """
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})


def anywhere(strategy, flag):
    """Returns True if a flag is set on any worker of a cluster; all workers must call it.

    Args:
        strategy: `tf.distribute.Strategy`.
        flag: bool.

    Returns:
        bool, the same on every worker.
    """

    def total():
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(float(flag)))

    votes = strategy.run(tf.function(total, autograph=False))
    return float(strategy.experimental_local_results(votes)[0]) > 0


def use_xla(jit_compile, strategy):
    """Resolves `train.jit_compile`.

    XLA's fusion pays off on a GPU; on a CPU XLA is slower than oneDNN. It cannot compile the
    communication of a strategy with several replicas.

    Args:
        jit_compile: bool or `"auto"`.
        strategy: `tf.distribute.Strategy`.

    Returns:
        bool.

    Raises:
        UserError: if it is True and there are several replicas.
    """
    several = strategy.num_replicas_in_sync > 1
    if jit_compile is True and several:
        raise UserError(
            "`train.jit_compile` cannot be true on several devices: XLA does not compile their "
            f'communication. Received: {strategy.num_replicas_in_sync} devices. Use "auto"'
        )
    if jit_compile == "auto":
        return not several and bool(tf.config.list_logical_devices("GPU"))
    return jit_compile
