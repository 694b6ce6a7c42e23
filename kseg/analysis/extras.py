"""Packages that only analyses and studies need."""

import importlib.util

from kseg.errors import UserError

_PACKAGES = {
    "matplotlib": "matplotlib",
    "psutil": "psutil",
    "ray": "ray",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
}


def require(*modules, extra="analysis", what="This analysis"):
    """Makes sure that optional packages are there.

    Args:
        *modules: names of modules, keys of `_PACKAGES`.
        extra: str, the extra of kseg that has them.
        what: str, what needs them; begins the message.

    Raises:
        UserError: if one is not installed.
    """
    missing = [_PACKAGES[m] for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise UserError(
            f"{what} needs {' and '.join(missing)}. Use pip install "
            f"'kseg[{extra}]', or pip install {' '.join(missing)}"
        )
