"""Packs the files for `gpu.py` and `gpu_study.py` on a machine with JAX, a GPU and no network.

    python scripts/benchmarks/gpu_pack.py --output .gpu --data DATA/camvid \
        --weights efficientnet-lite2-9656183e.pth

Writes `whl/`, the wheels that such a machine lacks (there: `pip install --no-index --no-deps
--target SITE whl/*.whl`), a copy of each data folder, and each weights file as `.npz` with
convolution kernels in float16, which halves it: a step of rounding of 2^-11.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

WHEELS = [
    "keras>=3.15,<3.16",
    *("namex", "optree", "pydantic", "annotated-types", "typing-inspection", "typing-extensions"),
]
_PLATFORMS = ("2_28", "2_27", "2_17")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder to make")
    parser.add_argument("--data", nargs="*", default=[], type=pathlib.Path, help="folders to copy")
    parser.add_argument("--weights", nargs="*", default=[], type=pathlib.Path, help=".pth files")
    parser.add_argument("--python", default="3.12", help="version on that machine")
    parser.add_argument("--no-wheels", action="store_true")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not arguments.no_wheels:
        fetch_wheels(arguments.output / "whl", arguments.python)
    for folder in arguments.data:
        shutil.copytree(
            folder, arguments.output / folder.name, dirs_exist_ok=True, copy_function=shutil.copy
        )
    for file in arguments.weights:
        halve_weights(file, arguments.output / f"{file.stem}.npz")
    files = [file for file in arguments.output.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    print(f"{arguments.output}: {len(files)} files, {size / 2**20:.1f} MiB")


def fetch_wheels(folder, python):
    """Downloads `WHEELS`, and pydantic's compiled part in the version that it names."""
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    fetch += ["--python-version", python, "--implementation", "cp", "-d", str(folder)]
    fetch += [f"--platform=manylinux_{version}_x86_64" for version in _PLATFORMS]
    fetch += ["--platform=manylinux2014_x86_64"]
    subprocess.run([*fetch, *WHEELS], check=True)
    (wheel,) = folder.glob("pydantic-*.whl")
    subprocess.run([*fetch, _requirement(wheel, "pydantic-core")], check=True)


def _requirement(wheel, name):
    """Returns a wheel's requirement on another package, such as `"pydantic-core==2.50.5"`."""
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    return next(
        line.removeprefix("Requires-Dist: ")
        for line in lines
        if line.startswith(f"Requires-Dist: {name}")
    )


def halve_weights(source, target):
    """Writes a checkpoint as `.npz`, with arrays of two and more axes in float16."""
    import numpy as np

    from kseg.weights.files import read_file

    arrays = read_file(source).arrays
    np.savez(
        target,
        **{
            name: array.astype("float16") if array.ndim > 1 and array.dtype.kind == "f" else array
            for name, array in arrays.items()
        },
    )


if __name__ == "__main__":
    main()
