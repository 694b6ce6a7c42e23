"""Networks and losses run under every Keras backend: none of them may import TensorFlow."""

import ast
import pathlib
import subprocess
import sys

import pytest

from tests import jax_process

ROOT = pathlib.Path(__file__).parents[1]
PORTABLE = ["backbones", "contrast", "heads", "layers", "losses", "segmenters"]
BACKEND = "kseg.backend"  # The one package below training that imports TensorFlow.
OPTIONAL = {"keras_cv"}  # Imported inside the function that a config has to ask for.


def source(module):
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


def imports(module):
    """Yields the absolute names that a module imports anywhere in its source."""
    for node in ast.walk(ast.parse(source(module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield node.module
            # `from kseg import layers`: each name may itself be a module.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    files = [ROOT / "kseg" / f"{name}.py" for name in PORTABLE]
    files = [file for file in files if file.exists()]
    for name in PORTABLE:
        files += sorted((ROOT / "kseg" / name).glob("*.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]


@pytest.mark.parametrize("module", modules())
def test_only_keras_and_numpy(module):
    module = module.removesuffix(".__init__")
    seen, queue = set(), [module]
    while queue:
        current = queue.pop()
        if current in seen or current.startswith(BACKEND):
            continue
        seen.add(current)
        for name in imports(current):
            top = name.split(".")[0]
            if top == "kseg":
                queue += [name] if source(name) else []
            else:
                allowed = top in {"keras", "numpy"} | OPTIONAL | set(sys.stdlib_module_names)
                assert allowed, f"{current} imports {name}"


RUN = """
import importlib.abc, sys

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tf_keras"):
            raise ImportError(f"{name} is forbidden here")

sys.meta_path.insert(0, Forbid())
import numpy as np
import kseg.backbones, kseg.contrast, kseg.heads, kseg.losses
from kseg.segmenters import build_segmenter, inference_model

backbone = kseg.backbones.build_hrnet(
    channels=(2, 4, 8, 16), modules=(1, 1, 1), blocks=(1, 1, 1), stage1_channels=2,
    stage1_blocks=1, stem_channels=4, synchronized_batch_norm=True,
)
arguments = {"channels": 8, "key_channels": 4}
segmenter = build_segmenter(backbone, "ocr", 3, head_arguments=arguments, projections=("c2",))
image = np.zeros((1, 33, 40, 3), "uint8")
assert segmenter(image)["embedding_c2"].shape == (1, 9, 10, 256)
assert inference_model(segmenter)(image).shape == (1, 33, 40, 3)
for depthwise in ("grouped", "shifted"):
    backbone = kseg.backbones.build_efficientnet_lite(
        channels=(4,) * 7, repeats=(1, 2, 1, 1, 1, 1, 1), stem_channels=4, top_channels=4,
        depthwise=depthwise,
    )
    assert backbone(image, training=True)["c5"].shape == (1, 2, 2, 4)
"""


# Keras' NumPy backend computes its convolutions with JAX.
@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_builds_and_runs_without_tensorflow(backend):
    result = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=ROOT,
        env=jax_process.environment(backend),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
