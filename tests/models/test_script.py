"""A script in torchvision's style, with parts of its own, runs unchanged on fastmask after a swap of names."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("torchvision_script.py.txt")


def run(source: str, folder: Path) -> str:
    path = folder / "script.py"
    path.write_text(source)
    command = [sys.executable, "-W", "ignore", str(path)]
    return subprocess.run(command, check=True, cwd=folder, env=os.environ, capture_output=True, text=True).stdout


def test_sixty_lines(tmp_path: Path) -> None:
    """Both train, evaluate and print the same; torchvision cannot export such a model, which fastmask does last."""
    script = SCRIPT.read_text()
    assert len(script.splitlines()) <= 66
    shared, mark, _ = script.partition("# deployment\n")
    assert mark
    theirs = run(shared, tmp_path).splitlines()
    ours = run(script.replace("torchvision", "fastmask"), tmp_path).splitlines()
    assert len(theirs) == 3
    assert ours[:3] == theirs
    assert ours[3:] == ["exported: True"]
