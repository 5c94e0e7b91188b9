"""Packages compiled by AOTInductor against the model, in this process and in one that knows nothing of models."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exact import assert_parity
from helpers.pages import find_example
from torch import Tensor

from fastmask.cli import main
from fastmask.demo import draw_scene
from fastmask.export import AOTPackage, ExportableModel, Shape, compare_outputs, write_package
from fastmask.models import detection

EXAMPLE = find_example("export/README.md", "aoti_load_package")
HIDDEN = "import sys\nfor name in ('fastmask.models', 'fastmask.export', 'torchvision'): sys.modules[name] = None\n"
SHOWN = "\nimport numpy\nnumpy.savez('found.npz', *(values.numpy() for values in found))\n"
MODEL = ["--model", "maskrcnn_slim_fpn", "--weights", "SHAPES_V1"]


def deployed_model(**options: bool) -> ExportableModel:
    return ExportableModel(detection.maskrcnn_slim_fpn(weights="DEFAULT").eval(), **options)


def scenes(number: int, size: tuple[int, int], seed: int) -> list[Tensor]:
    generator = np.random.default_rng(seed)
    return [torch.from_numpy(draw_scene(generator, size).image).permute(2, 0, 1) for _ in range(number)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes, having compared it with the model."""
    path = tmp_path_factory.mktemp("package") / "model.pt2"
    assert main(["export", str(path), *MODEL, "--size", "192", "224", "--raw", "--device", "cpu"]) == 0
    assert [one.name for one in path.parent.iterdir()] == ["model.pt2"]
    return path


def test_in_a_process_without_models(file: Path, seed: int) -> None:
    """Its page's example finds, bit by bit, what the package finds here; and that is what the model finds."""
    package, exportable = AOTPackage(file), deployed_model(raw=True)
    assert (package.batch, package.size, package.kind) == (1, (192, 224), "cpu")
    images = scenes(4, (180, 220), seed)
    found = compare_outputs(exportable.predict_arrays, package, images)
    assert_parity(found)
    inputs, sizes = package.preprocess(images[:1])
    np.savez(file.with_name("inputs.npz"), images=inputs, sizes=sizes)
    command = [sys.executable, "-c", HIDDEN + EXAMPLE + SHOWN]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(file.with_name("found.npz")) as elsewhere:
        for (name, here), there in zip(package(inputs, sizes).items(), elsewhere.values(), strict=True):
            np.testing.assert_array_equal(here, there, name)


def test_predict_runs_it(file: Path, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (image,) = scenes(1, (200, 300), seed)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    command = ["predict", str(tmp_path / "a.png"), "--exported", str(file), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    expected = AOTPackage(file)
    images, sizes = expected.preprocess([image])
    number = int((expected(images, sizes)["scores"] > 0.5).sum())
    assert f"{number} detections in 1 image" in capsys.readouterr().out
    if importlib.util.find_spec("av"):  # of a video, too
        from helpers.clips import write_clip

        frames = [image.permute(1, 2, 0).numpy()] * 3
        clip = write_clip(tmp_path / "a.mkv", frames, "ffv1", "bgr0")  # lossless
        assert main([*command[:1], str(clip), *command[2:]]) == 0
        assert f"{3 * number} detections in 3 frames of {clip}" in capsys.readouterr().out
    assert main([*command, "--restart", "--device", "cuda"]) == 2
    assert "device must be cpu, as the package was compiled for, got 'cuda'" in capsys.readouterr().err
    for device, message in (("cuda:1", "must be cpu, as the"), ("gpu", "must be one of PyTorch's, got 'gpu'")):
        with pytest.raises(ValueError, match=message):
            AOTPackage(file, device)
    assert AOTPackage(file, "cpu:0").kind == "cpu"


def test_what_was_not_compiled_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The compiled code would read beyond its inputs."""
    package = AOTPackage(file)
    images, sizes = torch.zeros(1, 192, 224, 3, dtype=torch.uint8), torch.tensor([[192, 224]])
    for wrong, message in (
        ((images.repeat(2, 1, 1, 1), sizes.repeat(2, 1)), "batch must be 1, as the package was compiled for, got 2"),
        ((images[:, :160], sizes), "height must be 192, as the package was compiled for, got 160"),
        ((images.float(), sizes), r"images must be torch.uint8, got torch.float32"),
        ((images, sizes.int()), r"sizes must be torch.int64, got torch.int32"),
        ((images, sizes[0]), r"sizes must be \[1, 2\], got \(2,\)"),
        ((images.permute(0, 3, 1, 2), sizes), r"images must be \[B, H, W, 3\], got \(1, 3, 192, 224\)"),
    ):
        with pytest.raises(ValueError, match=message):
            package.run(*wrong)
    strided = torch.zeros(1, 224, 192, 3, dtype=torch.uint8).transpose(1, 2)  # the same shape, elsewhere in memory
    torch.testing.assert_close(package.run(strided, sizes), package.run(images, sizes), rtol=0, atol=0)
    torn = tmp_path / "torn.pt2"
    torn.write_bytes(file.read_bytes()[:1000])
    for path, message in ((torn, "cannot be run"), (tmp_path / "none.pt2", "there is no such file")):
        with pytest.raises(ValueError, match=message):
            AOTPackage(path)
    with zipfile.ZipFile(file) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    for before, after, message in (
        (json.dumps(torch.__version__), '"1.0"', "must be exported again: it was with torch 1.0"),
        ("SymInt max_output", "float max_output", "must be exported again: it was with ops"),
        ('"AOTI_CPU_ISA": "', '"AOTI_CPU_ISA": "AVX9000 ', "must be exported on a machine like this: AOTI_CPU_ISA"),
        ('"image_mean"', '"mean"', "must be a file made by fastmask export"),
    ):
        other = tmp_path / "other.pt2"
        with zipfile.ZipFile(other, "w") as whole:
            for name, content in parts.items():
                if name.endswith("wrapper_metadata.json"):
                    assert before.encode() in content
                    content = content.replace(before.encode(), after.encode())
                whole.writestr(name, content)
        with pytest.raises(ValueError, match=message):
            AOTPackage(other)
    monkeypatch.setattr(package, "loaded", lambda *inputs: torch.zeros(2).view(3))
    with pytest.raises(ValueError, match="cannot be run: shape"):
        package.run(images, sizes)
    assert main(["export", str(tmp_path / "a.pt2"), *MODEL, "--opset", "18"]) == 2
    assert "--opset and --target must not be given for a .pt2 file" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "a.pt2"), *MODEL, "--device", "cuda:99"]) == 2
    assert "--device must be one that this machine has, got 'cuda:99'" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_compiler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torch._inductor import config

    with config.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}):  # setattr could not be undone
        assert main(["export", str(tmp_path / "a.pt2"), *MODEL, "--size", "64", "64", "--device", "cpu"]) == 2
    assert "No working C++ compiler found" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--dynamic",), ("--dtype", "float16"), ("--batch", "2", "--masks", "paste")])
def test_every_kind(options: tuple[str, ...], tmp_path: Path) -> None:
    assert main(["export", str(tmp_path / "a.pt2"), *MODEL, "--size", "192", "224", "--device", "cpu", *options]) == 0
    if "--dynamic" in options:
        package = AOTPackage(tmp_path / "a.pt2")
        with pytest.raises(ValueError, match=r"width must be a multiple of 32 in \[32, 320\], got 40"):
            package.run(torch.zeros(1, 3, 64, 40), torch.tensor([[64, 40]]))
        with pytest.raises(ValueError, match=r"batch must be a multiple of 1 in \[1, 64\], got 65"):
            package.run(torch.zeros(65, 3, 64, 64), torch.tensor([[64, 64]] * 65))


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path, seed: int) -> None:
    """Compiled there, the ops are the Triton kernels."""
    from torch.profiler import ProfilerActivity, profile

    exportable = deployed_model().cuda()
    write_package(exportable, tmp_path / "model.pt2", Shape(2, 192, 224))
    package = AOTPackage(tmp_path / "model.pt2", "cuda:0")
    images = scenes(4, (180, 220), seed)
    found = compare_outputs(exportable.predict_arrays, package, images)
    assert_parity(found)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        package(*package.preprocess(images[:2]))
    names = {event.key for event in profiled.key_averages()}
    assert {"_resolve_kernel", "_forward_kernel"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("trim", [True, False], ids=["trimmed", "fixed"])
def test_soft_nms(trim: bool, tmp_path: Path, seed: int) -> None:
    """A package calls the op, which ONNX does not have."""
    model = detection.maskrcnn_slim_fpn(weights="DEFAULT", box_nms="soft_gaussian").eval()
    exportable = ExportableModel(model)
    write_package(ExportableModel(model, trim=trim), tmp_path / "model.pt2", Shape(1, 192, 224))
    found = compare_outputs(exportable.predict_arrays, AOTPackage(tmp_path / "model.pt2"), scenes(4, (180, 220), seed))
    assert_parity(found)
