"""Settings every test process shares: one quiet TensorFlow on the CPU, two logical devices."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import pytest
import tensorflow as tf

# Before anything initialises the runtime: MirroredStrategy is tested on real (logical) replicas.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.config.threading.set_intra_op_parallelism_threads(1)


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Every test starts from the same seeds, layer names and precision."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    # Fixtures of the next module are made before this one.
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def mirrored():
    """MirroredStrategy over the two logical CPUs."""
    from kseg.training.distribution import build_strategy

    return build_strategy(2)


@pytest.fixture
def limit_file_size():
    """A function that limits the size of any file in bytes until the test ends.

    Writing beyond it fails, as on a full disk.
    """
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
