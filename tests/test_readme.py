"""README.md and the other pages: examples run as printed; commands, paths, names, links and tables are real."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers.images import draw_image
from helpers.pages import PAGES, ROOT, find_blocks, find_commands, find_example
from helpers.prefill import prefill
from PIL import Image

from fastmask import cli
from fastmask.benchmarks.report import SLOT, filled
from fastmask.cocoapi import mask as coco_mask

RECIPE = "fastmask/models/detection/shapes_v1/README.md"
NEEDS_FILES = ("model.onnx", "model.pt2", "trained/best.pth")  # tests/export, test_training_runs_as_printed
EXAMPLES = [
    pytest.param(example, id=f"{page}-{number}")
    for page in PAGES
    for number, example in enumerate(find_blocks(page, "python"))
    if not any(name in example for name in NEEDS_FILES)
]
COMMANDS = find_commands("README.md")
MAIN_JOB = "fastmask demo"
PREDICT = "fastmask predict photo.jpg --weights COCO_V1"


def run(command: str | list[str], folder: Path, **variables: str) -> str:
    """What a command prints, in a folder; a string is run by a shell that finds this environment's programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch.hub's folder with random COCO_V1 weights, as nothing can be downloaded here, beside a photo.jpg."""
    folder = tmp_path_factory.mktemp("hub")
    prefill(folder, draw_image(480, 640)[0])
    return folder


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs_as_printed(example: str, hub: Path, tmp_path: Path) -> None:
    shutil.copy(hub / "photo.jpg", tmp_path)
    run([sys.executable, "-c", example], tmp_path, TORCH_HOME=str(hub))


def test_import_diff_is_an_example() -> None:
    """Its new side is part of README's first example, which runs."""
    (diff,) = find_blocks("README.md", "diff")
    old, new, same = diff.splitlines()
    assert (old[0], new[0], same[0]) == ("-", "+", " ")
    assert new[1:] == old[1:].replace("torchvision", "fastmask")
    assert f"{new[1:]}\n\n{same[1:]}\n" in find_example("README.md", "no_grad")


def test_main_job_runs_as_printed(tmp_path: Path) -> None:
    """It reaches what its page says of the weights."""
    printed = run(MAIN_JOB, tmp_path, CUDA_VISIBLE_DEVICES="")
    written = json.loads((tmp_path / "demo.json").read_text())
    mask = written["metrics"]["mask"]
    assert written["images"] == 200
    assert mask["ap"] >= 0.80
    assert mask["ap50"] >= 0.95
    assert f"{mask['ap']:.3f}  {mask['ap50']:.3f}" in printed
    assert Image.open(tmp_path / "demo.png").width > 1500


def test_predict_runs_as_printed(hub: Path, tmp_path: Path) -> None:
    assert PREDICT in COMMANDS
    shutil.copy(hub / "photo.jpg", tmp_path)
    printed = run(PREDICT, tmp_path, TORCH_HOME=str(hub))
    drawn, photo = (np.array(Image.open(tmp_path / name)) for name in ("predictions/photo.predicted.png", "photo.jpg"))
    assert drawn.shape == photo.shape
    assert not np.array_equal(drawn, photo)
    results = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert f"{len(results)} detections in 1 image" in printed
    assert results
    assert coco_mask.decode([entry["segmentation"] for entry in results]).shape == (480, 640, len(results))


def test_training_runs_as_printed(tmp_path: Path) -> None:
    """On synthetic images, from nothing to weights; then to a file like the weights in the package."""
    commands = [command for command in COMMANDS if "shapes" in command]
    assert [command.split()[1] for command in commands] == ["data", "data", "train"]
    for command in commands:
        run(command, tmp_path)
    losses = [row["loss"] for row in json.loads((tmp_path / "training" / "epochs.json").read_text())]
    assert 0 < losses[0] < 4
    (tmp_path / "training").rename(tmp_path / "trained")
    run([sys.executable, "-c", find_example(RECIPE, "trained/best.pth")], tmp_path)
    assert (tmp_path / "weights.safetensors").exists()


def test_continuous_integration_calls_the_same_commands() -> None:
    assert COMMANDS[:2] == [f"pip install . && {MAIN_JOB}", "pip install -e '.[test]' && pytest"]
    script = (ROOT / ".ci" / "run").read_text()
    for command in (MAIN_JOB, COMMANDS[1]):
        assert command in script


def list_commands() -> list[str]:
    """Those of all pages, in shell blocks, and in CONTRIBUTING.md's tables."""
    rows = re.findall(r"^\| .*\|$", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    inline = re.findall(r"`((?:TRITON_INTERPRET=1 )?(?:pytest|python|fastmask|\.ci/run) [^`]+)`", "\n".join(rows))
    return list(dict.fromkeys([*(command for page in PAGES for command in find_commands(page)), *inline]))


@pytest.mark.parametrize("command", list_commands())
def test_command_is_accepted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program, its options, and the files of ours that it names."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    parts = re.findall(r"^#   (\w+) ", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    for part in command.split("&&"):
        program, *words = [word for word in shlex.split(part) if not re.fullmatch(r"[A-Z_]+=\w+", word)]
        if program == "torchrun":
            program, *words = words[words.index("-m") + 1 :]
        if program == "fastmask":
            monkeypatch.setattr(f"fastmask.cli.{words[0]}.run", lambda args: 0)
            assert cli.main(words) == 0
        elif program == "python":
            assert words[0] == "-m"
            assert importlib.util.find_spec(words[1]), words[1]
        elif program == "pytest":
            assert all((ROOT / word).exists() for word in words if "/" in word), words
        elif program == "pip":
            assert words[0] == "install"
            assert set(re.findall(r"\w+", words[-1].partition("[")[2])) <= set(extras), words
        elif program == ".ci/run":
            assert set(words) <= set(parts), words
        else:
            assert (program, words) == ("pre-commit", ["install"]), f"this test knows no program {program!r}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """To files, images that can be read, and headings."""
    text = re.sub(r"```.*?```|`[^`]*`", "", PAGES[page], flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        target, _, heading = "".join(link).partition("#")
        if target.startswith("https:"):
            continue
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), target
        if path.suffix in (".png", ".jpg"):
            Image.open(path).verify()
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", name).lower().replace(" ", "-") for name in headings], heading


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if SLOT.search(text)])
def test_tables_are_the_reports(page: str) -> None:
    """Times come from committed results, and from nowhere else."""
    assert filled(ROOT / page) == PAGES[page]


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 180
    assert len(PAGES["CONTRIBUTING.md"].splitlines()) < 200


def test_tree_is_the_repository() -> None:
    """Each path in CONTRIBUTING.md's tree exists, and each package is in it."""
    (tree,) = find_blocks("CONTRIBUTING.md", "")
    paths, folders = set(), [ROOT]
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth + 1 :] = [folders[depth] / name]
        assert folders[-1].exists(), line
        paths.add(folders[-1])
    for folder in ("fastmask", "kernels", "export", "benchmarks"):
        packages = {path.parent for path in (ROOT / folder).rglob("__init__.py")}
        assert packages <= paths, packages - paths


def test_files_and_functions_of_contributing_exist() -> None:
    """Also those that its tables name side by side."""
    text = PAGES["CONTRIBUTING.md"]
    files = re.findall(r"`([\w.]+/[\w/.]+\.\w+)`", text)
    assert len(files) > 30
    for name in files:
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name
    rows = re.findall(r"`(\w+)` \| `([\w/]+\.py)` \|$", text, re.MULTILINE) + [
        (name, file) for file, name in re.findall(r"`([\w/]+\.py)`: `(\w+)`", text)
    ]
    assert len(rows) > 10
    for name, file in rows:
        assert re.search(rf"\b(def|class) {name}\b|^{name} =", (ROOT / file).read_text(), re.MULTILINE), (name, file)
