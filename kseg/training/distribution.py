"""Which devices a run uses."""

import tensorflow as tf

from kseg.errors import UserError


def build_strategy(devices=None):
    """Chooses a strategy: MirroredStrategy over several devices, the default one for one.

    Args:
        devices: int, how many to use, or None: all. GPUs if there are any, else (logical) CPUs.

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        UserError: if there are fewer devices.
    """
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
