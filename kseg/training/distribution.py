"""Which devices of which machines a run uses."""

import dataclasses
import json
import os

import tensorflow as tf

from kseg.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The machines that train one model together, as `TF_CONFIG` names them.

    Attributes:
        num_workers: int, at least 2.
        worker: int, this one's number; the chief, or worker 0 where none is named, is 0.
    """

    num_workers: int
    worker: int

    @property
    def is_chief(self):
        """Whether this worker is the one that writes."""
        return self.worker == 0


def read_cluster(environment=os.environ):
    """Reads `TF_CONFIG`.

    Args:
        environment: mapping of str.

    Returns:
        `Cluster`, or None if there is no `TF_CONFIG`, or one of a single worker.

    Raises:
        UserError: if it is malformed, or names other tasks than chief and workers.
    """
    text = environment.get("TF_CONFIG")
    if not text:
        return None
    rule = (
        'TF_CONFIG must look like {"cluster": {"worker": ["host:port", ...]}, "task": {"type": '
        '"worker", "index": 0}}'
    )
    try:
        values = json.loads(text)
        hosts = {kind: len(list(addresses)) for kind, addresses in values["cluster"].items()}
        kind, index = values["task"]["type"], int(values["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{rule}. Received: {text} ({type(error).__name__}: {error})") from None
    strange = sorted({*hosts, kind} - {"chief", "worker"})
    if strange:
        raise UserError(f"{rule}, with chief and workers only. Received a task {strange[0]!r}")
    if not 0 <= index < hosts.get(kind, 0):
        raise UserError(
            f"{rule}. Received: task {kind!r} {index} of {hosts.get(kind, 0)}. Count from 0"
        )
    if sum(hosts.values()) < 2:
        return None
    first = hosts.get("chief", 0) if kind == "worker" else 0
    return Cluster(sum(hosts.values()), first + index)


def build_strategy(devices=None, cluster=None):
    """Chooses a strategy, before anything else is computed.

    MirroredStrategy over several devices, the default one for one; in a cluster
    MultiWorkerMirroredStrategy over all GPUs of its machines, or their CPUs.

    Args:
        devices: int, how many to use, or None: all. GPUs if there are any, else (logical) CPUs.
        cluster: `Cluster` or None.

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        UserError: if there are fewer devices, or some are chosen in a cluster.
    """
    if cluster:
        if devices is not None:
            raise UserError(
                "`train.devices` must be null where TF_CONFIG names several machines: each uses "
                f"all its GPUs. Received: {devices}. Set CUDA_VISIBLE_DEVICES to use fewer"
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    if devices is not None and devices > len(names):
        raise UserError(
            f"`train.devices` must be at most the number of {kind}s here, {len(names)}. "
            f"Received: {devices}. Use null for all of them"
        )
    names = names[:devices]
    if len(names) > 1:
        return tf.distribute.MirroredStrategy(names)
    return tf.distribute.get_strategy()


def make_reproducible():
    """Makes processes that run the same graph on the same machine compute the same bits.

    Grappler's arithmetic optimizer walks over hash tables whose order differs from process to
    process, and with it the order in which it factors and combines sums and products. Its
    rewrites buy no speed for these networks: constant folding, remapping to fused kernels and
    layout optimization stay on. Holds for every graph that this process compiles from now on.
    """
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})


def anywhere(strategy, flag):
    """Asks whether a flag is set on any worker of a cluster, once all workers ask.

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

    XLA fuses and pays on a GPU, is slower than oneDNN on a CPU, and cannot compile the
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
