"""The software and hardware behind a result: package versions, git commit, devices."""

import importlib.metadata
import pathlib
import platform
import subprocess

_PACKAGES = ("keras", "tensorflow", "numpy", "opencv-python-headless", "kseg")


def environment():
    """Returns everything that a result depends on besides the config, as a JSON-able dict."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments):
    """Returns the output of a git command about this source tree; None without git."""
    try:
        result = subprocess.run(
            ["git", *arguments],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
