"""The front door: `import kseg` and the command line."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import kseg
from kseg import registration
from kseg.commands import config as config_command
from kseg.commands.__main__ import COMMANDS
from kseg.config import ConfigError, load
from kseg.config.loading import find

ROOT = pathlib.Path(__file__).parents[1]
NAMES = [
    "OHEM",
    "Contextrast",
    "CrossEntropy",
    "Dice",
    "Evaluator",
    "Focal",
    "Lovasz",
    "MeanIoU",
    "MultiScaleContrast",
    "PixelContrast",
    "RegionContrast",
    "Run",
    "SegmentationTrainer",
    "UserError",
    "build_backbone",
    "build_segmenter",
    "cross_entropy",
    "evaluate",
    "export",
    "from_preset",
    "inference_model",
    "info_nce",
    "load",
    "load_config",
    "load_weights",
    "lovasz_softmax",
    "ohem_cross_entropy",
    "predict",
    "prepare",
    "push",
    "train",
]


def python(code, *, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_public_names():
    assert kseg.__all__ == NAMES
    for name in NAMES:
        value = getattr(kseg, name)
        assert callable(value) and value.__doc__, name
    assert set(NAMES) <= set(dir(kseg))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        kseg.trian  # noqa: B018


def test_importing_is_light():
    heavy = "('keras', 'tensorflow', 'numpy', 'pydantic')"
    result = python(f"import kseg, sys; print([m for m in {heavy} if m in sys.modules])")
    assert result.stdout == "[]\n", result.stderr
    assert re.fullmatch(r"\d+\.\d+\.\d+", kseg.__version__)
    assert f"\nversion = {kseg.__version__}\n" in (ROOT / "setup.cfg").read_text()


def test_every_serializable_class_is_registered():
    """The list of modules is that of the source."""
    pattern = r"register_keras_serializable|^@_register"
    files = [f for f in (ROOT / "kseg").rglob("*.py") if re.search(pattern, f.read_text(), re.M)]
    modules = {".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files}
    listed = registration.PORTABLE + registration.NEEDS_TENSORFLOW
    for module in modules - {"kseg.registration"}:
        assert any(module == m or module.startswith(f"{m}.") for m in listed), module
    for module in listed:
        importlib.import_module(module)


@pytest.mark.parametrize(
    "imports",
    [
        "import keras, kseg",
        "import kseg, keras",
        "import kseg; kseg.load_config",
        "import importlib.util, kseg; importlib.util.find_spec('keras')",  # As libraries probe.
    ],
)
def test_classes_are_registered_in_either_order(imports):
    code = f"""
{imports}
import keras
found = [keras.saving.get_registered_object(f"kseg>{{name}}") for name in
         ("Conv2D", "Backbone", "SegmentationTrainer", "Contextrast", "MeanIoU", "CrossEntropy")]
print(all(found))
"""
    result = python(code)
    assert result.stdout == "True\n", result.stderr


def test_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("quickstart").name == "quickstart"
    assert load("camvid_small_ce.json") == load(ROOT / "configs/camvid_small_ce.json")
    (tmp_path / "mine.json").write_text('{"extends": "quickstart", "seed": 5}')
    assert load("mine.json").seed == 5
    # A file of the user's wins.
    (tmp_path / "quickstart").write_text('{"extends": "quickstart.json", "seed": 6}')
    assert load("quickstart").seed == 6
    with pytest.raises(ConfigError, match="Did you mean quickstart, which comes with kseg"):
        load("quikstart")
    for name in ("schema", "../setup", "none/quickstart"):
        assert find(name) == pathlib.Path(name)


def test_the_config_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert config_command.main([]) == 0
    names = capsys.readouterr().out.split()
    assert "ade20k_ocrnet" in names and "schema" not in names
    assert config_command.main(["camvid_small_mscs", "--output", "mine.json"]) == 0
    assert load("mine.json", ["name=camvid_small_mscs"]) == load("camvid_small_mscs")
    capsys.readouterr()
    assert config_command.main(["camvid_small_mscs", "--resolved"]) == 0
    (tmp_path / "resolved.json").write_text(capsys.readouterr().out)
    assert load("resolved.json") == load("camvid_small_mscs")
    with pytest.raises(kseg.UserError, match="there already"):
        config_command.main(["quickstart", "--output", "mine.json"])


def call(*arguments, cwd):
    command = [sys.executable, "-m", "kseg.commands", *arguments]
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(cwd)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_line(tmp_path):
    result = call("--help", cwd=tmp_path)
    assert result.returncode == 0 and all(f"  {name} " in result.stdout for name in COMMANDS)
    assert call("--version", cwd=tmp_path).stdout == f"kseg {kseg.__version__}\n"
    result = call("trian", cwd=tmp_path)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    result = call("train", "--help", cwd=tmp_path)
    assert result.stdout.startswith("usage: kseg train ")


def test_each_command_has_a_script_and_a_function():
    for name in COMMANDS:
        assert importlib.import_module(f"kseg.commands.{name}").main
    scripts = [f.read_text() for f in ROOT.glob("scripts/*.py")]
    names = {
        match[1] for text in scripts if (match := re.search(r'^    run\("(\w+)"\)', text, re.M))
    }
    assert names == set(COMMANDS) - {"config"}


def test_another_package_of_the_name_pipelines_is_one_line(tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/__init__.py").write_text("")
    result = call("train", "--config", "quickstart", "--dry-run", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: The package `pipelines` of kseg is hidden") and "Rename" in line


def test_setup_lists_every_package():
    listed = re.findall(r"^    ((?:kseg|pipelines)[\w.]*)$", (ROOT / "setup.cfg").read_text(), re.M)
    folders = [f.parent for top in ("kseg", "pipelines") for f in (ROOT / top).rglob("__init__.py")]
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(listed) == packages | {"kseg.configs"}


def test_functions_behind_the_commands_refuse_what_the_shell_does():
    from kseg.commands.analyze import analyze
    from kseg.commands.convert import convert

    with pytest.raises(kseg.UserError, match="Received: colour"):
        analyze("features", "nowhere", colour=1)
    with pytest.raises(kseg.UserError, match="Received: poems"):
        analyze("poems", "nowhere")
    with pytest.raises(kseg.UserError, match="nowhere is not a run"):
        analyze("features", "nowhere")
    with pytest.raises(kseg.UserError, match="One of `backbone` and `config`"):
        convert("x.npz", "y.weights.h5")
    with pytest.raises(kseg.UserError, match=r"must end in \.weights\.h5"):
        convert("x.npz", "y", backbone="resnet18")
    with pytest.raises(kseg.UserError, match="One of `run` and `saved_model`"):
        kseg.evaluate()
    with pytest.raises(kseg.UserError, match=r"`overlap` goes with `sliding_window`"):
        kseg.evaluate("nowhere", overlap=0.5)
    with pytest.raises(kseg.UserError, match="nowhere is not a run"):
        kseg.export("nowhere", "model")
    with pytest.raises(ValueError, match="`overrides` are for a file"):
        kseg.train(load("quickstart"), overrides=["seed=1"])
