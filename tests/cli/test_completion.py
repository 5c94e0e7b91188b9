"""``fastmask --completion``: its script, in bash itself."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastmask import models
from fastmask.cli import main
from fastmask.cli._completion import MODELS, WEIGHTS

QUICKLY = """
import sys
from fastmask.cli import main
try:
    main(["--completion", sys.argv[1]])
except SystemExit as exit:
    slow = {"torch", "numpy", "PIL"} & set(sys.modules)
    sys.exit(f"imports {slow}" if slow else exit.code)
"""
TRY = """
source "$1"
shift
COMP_WORDS=(fastmask "$@")
COMP_CWORD=$#
_shtab_fastmask 2> /dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


def make_script(shell: str, folder: Path) -> Path:
    pytest.importorskip("shtab", reason="it writes the scripts; the oldest versions' environment has none")
    done = subprocess.run([sys.executable, "-c", QUICKLY, shell], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "script").write_text(done.stdout)
    return folder / "script"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash itself completes")
def test_bash_completes(tmp_path: Path) -> None:
    script = make_script("bash", tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "SHAPES.pth").touch()
    for line, expected in {
        "": "demo export predict compare train evaluate data push models bench selftest tune env",
        "ev": "evaluate",
        "data ": "convert check draw",
        "data convert --to ": "coco via labelme masks yolo",
        "train --w": "--weights --weights-backbone --warmup --weight-decay --workers",
        "train --no": "",
        "train --optimizer ": "sgd adamw",
        "train --model mask": " ".join(name for name in MODELS if name.startswith("mask")),
        "train --weights i": "imagenet",
        "predict --weights SHAPES": "SHAPES_V1 SHAPES.pth",
        "predict --device c": "cpu cuda",
        "predict --format ": "auto jpeg png",
        "evaluate --backend f": "faster-coco-eval",
        "predict ph": "photos",
        "train --config --resume --data-path p": "photos",
        "--completion ": "bash zsh",
    }.items():
        command = ["bash", "--norc", "-c", TRY, "bash", script, *line.split(" ")]
        found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert (found.stderr, found.stdout.split()) == ("", expected.split()), line


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh itself completes")
def test_zsh_reads_the_script(tmp_path: Path) -> None:
    subprocess.run(["zsh", "-n", make_script("zsh", tmp_path)], check=True)


def test_names_are_those_of_the_library() -> None:
    assert list(MODELS) == models.list_models(module=models.detection)
    members = {name for model in MODELS for name in models.get_model_weights(model).__members__} - {"DEFAULT"}
    assert members == set(WEIGHTS)


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match="2"):
        main(["--completion", "bash"])
    assert capsys.readouterr() == ("", "fastmask: --completion needs shtab: pip install 'fastmask-rcnn[completion]'\n")
