"""README.md and the other pages: examples run as printed; commands, paths, names, links and tables are real."""

import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from helpers.clips import draw_frames, write_clip
from helpers.images import draw_image
from helpers.matterport import SLIM, draw_weights, write_h5
from helpers.pages import PAGES, ROOT, find_blocks, find_commands, find_example
from helpers.prefill import prefill
from PIL import Image

from fastmask import cli, unpatch_torchvision
from fastmask.benchmarks.report import SLOT, filled
from fastmask.models import Checkpoint

RECIPE = "fastmask/models/detection/shapes_v1/README.md"
NOTEBOOK = "fastmask/training/finetune.md"  # tests/training/test_notebook.py runs it as a whole
# tests/export, test_training_runs_as_printed, tests/inference/test_ray.py
NEEDS_FILES = ("model.onnx", "model.pt2", "trained/", "import ray")
EXAMPLES = [
    pytest.param(example, id=f"{page}-{number}", marks=[pytest.mark.slow] if "import wandb" in example else [])
    for page in PAGES
    for number, example in enumerate(find_blocks(page, "python"))
    if not any(name in example for name in NEEDS_FILES) and page != NOTEBOOK
]
COMMANDS = find_commands("README.md")
MAIN_JOB = "fastmask demo"
PREDICT = "fastmask predict photo.jpg --weights COCO_V1"


def run_example(example: str) -> None:
    """In a namespace of its own; in this process, which has imported PyTorch: seconds an example."""
    try:
        exec(compile(example, "example", "exec"), {"__name__": "__main__"})
    finally:
        unpatch_torchvision()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch.hub's folder with random COCO_V1 weights, as nothing can be downloaded here, beside a photo.jpg.

    A photo this low is resized to 200 x 1333: a quarter of the pixels of a usual one.
    """
    folder = tmp_path_factory.mktemp("hub")
    prefill(folder, draw_image(96, 640)[0])
    return folder


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs_as_printed(
    example: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "COCO_V1" in example or "photo.jpg" in example:
        hub = request.getfixturevalue("hub")
        shutil.copy(hub / "photo.jpg", tmp_path)
        monkeypatch.setenv("TORCH_HOME", str(hub))
    if "mask_rcnn_balloon.h5" in example:
        write_h5(tmp_path / "mask_rcnn_balloon.h5", draw_weights(1, SLIM._replace(classes=2)))
    if "import wandb" in example:
        pytest.importorskip("wandb", reason="no extra has it: pip install wandb")
    if "clip.mp4" in example:
        pytest.importorskip("av", reason="it reads the video")
        write_clip(tmp_path / "clip.mp4", draw_frames(4))
    if "to_supervision" in example:
        pytest.importorskip("supervision")
    monkeypatch.chdir(tmp_path)
    run_example(example)


def test_import_diff_is_an_example() -> None:
    """Its new side is part of README's first example, which runs."""
    (diff,) = find_blocks("README.md", "diff")
    old, new, same = diff.splitlines()
    assert (old[0], new[0], same[0]) == ("-", "+", " ")
    assert new[1:] == old[1:].replace("torchvision", "fastmask")
    assert f"{new[1:]}\n\n{same[1:]}\n" in find_example("README.md", "no_grad")


def test_training_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On synthetic images, from nothing to weights; then to a file like the weights in the package."""
    commands = [shlex.split(command) for command in COMMANDS if "shapes" in command]
    assert [command[:2] for command in commands] == [["fastmask", name] for name in ("data", "data", "train")]
    monkeypatch.chdir(tmp_path)
    for _, *words in commands:
        assert cli.main(words) == 0
    losses = [row["loss"] for row in json.loads((tmp_path / "training" / "epochs.json").read_text())]
    assert 0 < losses[0] < 4
    (tmp_path / "training").rename(tmp_path / "trained")
    run_example(find_example(RECIPE, "trained/best.pth"))
    assert (tmp_path / "weights.safetensors").exists()
    last = torch.load(tmp_path / "trained" / "last.pth")
    torch.save(last | {"ema": last["model"]}, tmp_path / "trained" / "last.pth")  # as a run with an average leaves it
    run_example(find_example("fastmask/models/detection/balloon_v1/README.md", "last.pth"))
    state = Checkpoint(tmp_path / "weights.safetensors").get_state_dict()
    assert all(torch.equal(state[key], value.to(state[key].dtype)) for key, value in last["model"].items())


def test_continuous_integration_calls_the_same_commands() -> None:
    """It also checks what they find: see main_job in .ci/run."""
    assert COMMANDS[:2] == [f"pip install . && {MAIN_JOB}", "pip install -e '.[test]' && pytest"]
    assert PREDICT in COMMANDS
    script = (ROOT / ".ci" / "run").read_text()
    for command in (MAIN_JOB, COMMANDS[1], PREDICT):
        assert command in script


def list_commands() -> list[str]:
    """Those of all pages, in shell blocks, and in CONTRIBUTING.md's tables."""
    rows = re.findall(r"^\| .*\|$", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    inline = re.findall(r"`((?:TRITON_INTERPRET=1 )?(?:pytest|python|fastmask|\.ci/run) [^`]+)`", "\n".join(rows))
    return list(dict.fromkeys([*(command for page in PAGES for command in find_commands(page)), *inline]))


@pytest.mark.parametrize("command", list_commands())
def test_command_is_accepted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program, its options, and the files of ours that it names."""
    monkeypatch.setattr("fastmask.cli.train.parse", lambda parser, parse_line: parse_line())  # reads no files
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
