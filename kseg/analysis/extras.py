"""Packages that only analyses need."""

import importlib.util

from kseg.errors import UserError

_PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}


def require(*modules):
    """Makes sure that optional packages are there.

    Args:
        *modules: `"matplotlib"`, `"sklearn"`.

    Raises:
        UserError: if one is not installed.
    """
    missing = [_PACKAGES[m] for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise UserError(
            f"This analysis needs {' and '.join(missing)}. Use pip install "
            f'-e ".[analysis]", or pip install {" ".join(missing)}'
        )
