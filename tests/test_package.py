"""The package as it is installed: its folders, its light import, its command, its metadata."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import fastmask
from fastmask import cli

ROOT = Path(__file__).parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def test_packages_are_the_folders_on_disk() -> None:
    """A folder left out of ``packages`` would be missing from the wheel."""
    folders = {found.parent for top in (ROOT / "fastmask").iterdir() for found in top.rglob("__init__.py")}
    on_disk = {"fastmask"} | {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(CONFIG["tool"]["setuptools"]["packages"]) == sorted(on_disk)


def test_metadata() -> None:
    metadata = importlib.metadata.metadata("fastmask-rcnn")
    assert metadata["Version"] == fastmask.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert f"## {fastmask.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    requires = importlib.metadata.requires("fastmask-rcnn")
    assert requires is not None
    assert not [line for line in requires if line.startswith("torchvision") and "extra ==" not in line]
    assert (Path(fastmask.__file__).parent / "py.typed").exists()


def test_pins_are_the_same_everywhere() -> None:
    """Ruff's version and Python's stand in several files."""
    project = CONFIG["project"]
    pins = re.findall(r'"ruff==([\d.]+)"', (ROOT / ".pre-commit-config.yaml").read_text())
    assert pins
    assert {f"ruff=={pin}" for pin in pins} <= set(project["optional-dependencies"]["lint"])

    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (python,) = re.findall(r'python-version: "([\d.]+)"', workflow)
    assert project["requires-python"] == f">={python}"
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]
    assert CONFIG["tool"]["ruff"]["target-version"] == f"py{python.replace('.', '')}"


def test_parts_of_continuous_integration() -> None:
    """A part that ``.ci/run`` does not have is an error before anything runs, and the message lists those it has."""
    done = run(str(ROOT / ".ci" / "run"), "ruff", "fly")
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("unknown part: fly; parts are\n")
    script = (ROOT / ".ci" / "run").read_text()
    listed = [line.split()[0] for line in done.stderr.splitlines()[1:]]
    assert listed == re.findall(r"^    (\w+)\)", script, re.MULTILINE)
    everything = " ".join(re.findall(r"\blane ((?:[a-z]+ ?)+)", script))
    assert sorted(listed) == sorted(everything.split())


HIDE_TRITON = """
import sys
sys.modules["triton"] = None  # what an import of a package that is not installed does: ImportError
sys.modules["torchvision"] = None
import fastmask
assert "torch" not in sys.modules, "import fastmask must stay light"
import torch
boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 5.]])
assert fastmask.ops.nms(boxes, torch.tensor([1., 2.]), 0.5).tolist() == [1]
assert fastmask.ops.roi_align(torch.ones(1, 2, 8, 8), [boxes], 2).shape == (2, 2, 2, 2)
try:
    fastmask.patch_torchvision()
except ImportError as error:
    assert str(error) == "patch_torchvision needs torchvision: pip install torchvision", error
else:
    raise AssertionError("patched what is not there")
assert not [name for name, module in sys.modules.items() if name.split(".")[0] == "triton" and module]
"""


def test_imports_and_runs_without_triton_and_torchvision() -> None:
    done = run(sys.executable, "-c", HIDE_TRITON)
    assert done.returncode == 0, done.stderr


HIDE_PYCOCOTOOLS = """
import sys
sys.modules["pycocotools"] = None
import fastmask.benchmarks.cases, fastmask.data, fastmask.demo, fastmask.evaluation, fastmask.training
from fastmask.cli import main
assert fastmask.evaluation.matching.IOU_THRESHOLDS[5] == 0.75
try:
    fastmask.cocoapi.mask.decode([])
except ImportError as error:
    assert str(error) == "pycocotools.mask.decode needs pycocotools: pip install pycocotools", error
else:
    raise AssertionError("decoded by what is not there")
"""


def test_imports_without_pycocotools() -> None:
    done = run(sys.executable, "-c", HIDE_PYCOCOTOOLS)
    assert done.returncode == 0, done.stderr


def test_kernels_is_not_a_top_level_package() -> None:
    """PyPI has another ``kernels``; importing ours under that name from the repository's root is refused."""
    done = run(sys.executable, "-c", "import kernels", cwd=ROOT)
    assert done.returncode != 0
    assert "import this package as fastmask.kernels" in done.stderr


def test_command() -> None:
    for command in (["fastmask"], [sys.executable, "-m", "fastmask"]):
        if command == ["fastmask"]:
            command = [str(Path(sys.executable).parent / "fastmask")]
        assert run(*command, "--version").stdout == f"fastmask {fastmask.__version__}\n"
        done = run(*command, "--help")
        assert done.returncode == 0
        for name in cli.COMMANDS:
            assert f"    {name} " in done.stdout
        assert run(*command, "fly").returncode == 2


def test_command_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env"]) == 0
    printed = capsys.readouterr().out
    assert f"fastmask-rcnn  {fastmask.__version__}\n" in printed
    assert f"torch          {torch.__version__}\n" in printed
    for package in ("python", "torch", "triton", "cpu"):
        assert f"\n{package:14} " in f"\n{printed}"


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'fastmask' has no attribute 'opps'"):
        _ = fastmask.opps
    assert "ops" in dir(fastmask)
