"""hubconf.py: the builders through torch.hub, from the repository and as torch.hub unpacks it."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from helpers.pages import ROOT

from fastmask import models
from fastmask.models._api import list_families
from fastmask.models.detection import maskrcnn_slim_fpn

HUBCONF = ROOT / "hubconf.py"
LOAD = """
import sys, torch
model = torch.hub.load(sys.argv[1], "maskrcnn_slim_fpn", source="local", weights="SHAPES_V1").eval()
import fastmask.kernels
print(fastmask.kernels.__file__, len(model([torch.rand(3, 96, 128)])))
"""


def test_builders_are_entry_points() -> None:
    """And nothing else: torch.hub.list names what is callable and does not begin with an underscore."""
    names = [name for name, value in runpy.run_path(str(HUBCONF)).items() if callable(value) and name[0] != "_"]
    assert sorted(names) == sorted([*models.list_models(), *list_families()])
    model = torch.hub.load(str(ROOT), "maskrcnn_slim_fpn", source="local", weights="SHAPES_V1")
    assert isinstance(model, models.detection.MaskRCNN)
    expected = maskrcnn_slim_fpn(weights="SHAPES_V1").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_dependencies_are_the_packages_own() -> None:
    """But those without which models load, too; by the names that are imported."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[^\w-]", line)[0].replace("pillow", "PIL") for line in lines}
    assert {*runpy.run_path(str(HUBCONF))["dependencies"]} == names - {"triton", "pycocotools"}


@pytest.mark.slow
def test_loads_where_links_are_files(tmp_path: Path) -> None:
    """torch.hub unpacks GitHub's archive by zipfile, which makes a file of a link, with the link's target in it."""
    for name in ("fastmask", "kernels", "export", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    for link in [path for path in (tmp_path / "fastmask").iterdir() if path.is_symlink()]:
        target = link.readlink()
        link.unlink()
        link.write_text(str(target))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], cwd=tmp_path.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'kernels' / '__init__.py'} 1\n"
