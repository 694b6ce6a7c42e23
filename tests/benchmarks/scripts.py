"""Loading the scripts of scripts/benchmarks, which is no package."""

import importlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "scripts" / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py"))
MODULES = sorted(path.stem for path in BENCHMARKS.glob("_*.py"))


def load(name):
    """Imports a module of the folder as its sisters do."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))
