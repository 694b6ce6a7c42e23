"""Checks for the optional packages of the analysis and of studies."""

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
    """Checks that optional packages are installed.

    Args:
        *modules: names of modules, keys of `_PACKAGES`.
        extra: str, the extra of kseg that installs them.
        what: str, the subject of the error message: what needs them.

    Raises:
        UserError: if one is not installed.
    """
    missing = [_PACKAGES[m] for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise UserError(
            f"{what} needs {' and '.join(missing)}. Use pip install "
            f"'kseg[{extra}]', or pip install {' '.join(missing)}"
        )
