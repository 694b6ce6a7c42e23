"""The workers of multi-machine training, read from `TF_CONFIG` without importing TensorFlow."""

import dataclasses
import os

from kseg.errors import UserError
from kseg.json_text import parse_json


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The machines that train one model together, as listed in `TF_CONFIG`.

    Attributes:
        num_workers: int, at least 2.
        worker: int, index of this worker; the chief, or worker 0 if no chief is named, is 0.
        address: str, `host:port` of this worker.
    """

    num_workers: int
    worker: int
    address: str = dataclasses.field(default="", compare=False)

    @property
    def is_chief(self):
        """True for the chief, the worker that evaluates, prints and writes."""
        return self.worker == 0


def read_cluster(environment=os.environ):
    """Reads `TF_CONFIG`.

    Args:
        environment: mapping of str.

    Returns:
        `Cluster`, or None if `TF_CONFIG` is missing or names a single worker.

    Raises:
        UserError: if it is malformed, or names tasks other than chief and workers.
    """
    text = environment.get("TF_CONFIG")
    if not text:
        return None
    rule = (
        'TF_CONFIG must look like {"cluster": {"worker": ["host:port", ...]}, "task": {"type": '
        '"worker", "index": 0}}'
    )
    try:
        values = parse_json(text)
        hosts = {kind: len(list(addresses)) for kind, addresses in values["cluster"].items()}
        kind, index = values["task"]["type"], int(values["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{rule}. Received: {text} ({type(error).__name__}: {error})") from None
    unknown = sorted({*hosts, kind} - {"chief", "worker"})
    if unknown:
        raise UserError(f"{rule}, with chief and workers only. Received a task {unknown[0]!r}")
    if not 0 <= index < hosts.get(kind, 0):
        raise UserError(
            f"{rule}. Received: task {kind!r} {index} of {hosts.get(kind, 0)}. Count from 0"
        )
    if sum(hosts.values()) < 2:
        return None
    first = hosts.get("chief", 0) if kind == "worker" else 0
    return Cluster(sum(hosts.values()), first + index, str(values["cluster"][kind][index]))
