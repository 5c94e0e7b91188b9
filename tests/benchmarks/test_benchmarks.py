"""The benchmarks themselves: wrong results have no row, baselines are optional, each result is saved."""

import collections
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmask import ops
from fastmask.benchmarks import baselines, cases, measure, runner
from fastmask.benchmarks.case import Case, CaseSpec
from fastmask.benchmarks.cases import CASES, masks, model, nms, roi_align
from fastmask.benchmarks.device_time import measure_device_time
from fastmask.cli import main

CPU = torch.device("cpu")
SMALL = ("NMS, 1k in 80 classes, random", "RLE of 20 masks on 480 x 640", "paste 20 masks on 480 x 640, packed")


def off_by_a_row(*args: Any, **options: Any) -> Tensor:
    return ops.masks.paste_masks(*args, **options).roll(1, dims=-2)


def test_a_wrong_kernel_has_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Off by one row: no row, beside torchvision and beside the reference; cases that match have theirs."""
    command = ["bench", "--quick", "--full", "--only", "20 masks on 480 x 640", "--device", "cpu"]
    monkeypatch.setattr(ops, "paste_masks", off_by_a_row)
    for has_torchvision in (True, False):
        monkeypatch.setattr(masks, "HAS_TORCHVISION", has_torchvision)
        assert main([*command, "--json", str(tmp_path / "results.json")]) == 1
        results = json.loads((tmp_path / "results.json").read_text())
        rows = {(row["group"], row["extra_info"]["provider"]) for row in results["benchmarks"]}
        wrong = {f"paste 20 masks on 480 x 640, {output}" for output in ("bool", "packed")}
        assert ("RLE of 20 masks on 480 x 640", "fastmask") in rows or not has_torchvision  # its sample pastes
        assert not rows & {(name, "fastmask") for name in wrong}
        assert {(name, "torchvision") for name in wrong} <= rows or not has_torchvision
        assert results["finished"]
        printed = capsys.readouterr().err
        baseline = "torchvision" if has_torchvision else "the reference"
        for name in wrong:
            assert f"no row: {name}: fastmask does not match {baseline}: " in printed


@pytest.mark.slow
def test_a_wrong_kernel_has_no_row_in_pytest(tmp_path: Path) -> None:
    """An error in ``pytest benchmarks``, and no row in its JSON."""
    plugin = "from fastmask import ops\nright = ops.paste_masks\n"
    plugin += "ops.paste_masks = lambda *args, **options: right(*args, **options).roll(1, dims=-2)\n"
    (tmp_path / "wrong_kernel.py").write_text(plugin)
    root = Path(__file__).parent.parent.parent
    command = ["-m", "pytest", "-p", "wrong_kernel", "benchmarks", "--benchmark-only", "--quick", "--full", "-q"]
    command += ["-k", "paste and 20 and 480 and not packed", f"--benchmark-json={tmp_path / 'results.json'}"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    rows = json.loads((tmp_path / "results.json").read_text())["benchmarks"]
    assert {row["group"] for row in rows if row["extra_info"]["provider"] == "fastmask"} == {
        "paste 20 masks on 480 x 640"
    }
    assert "paste 20 masks on 480 x 640, bool: fastmask does not match torchvision" in done.stdout


@pytest.mark.parametrize("name", [*SMALL, "RoIAlign, 100 RoIs", "RoIPool", "NMS, RPN, a batch"])
def test_without_torchvision(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in (masks, nms, roi_align, model):
        monkeypatch.setattr(module, "HAS_TORCHVISION", False)
    assert main(["bench", "--quick", "--full", "--only", name, "--device", "cpu"]) == 0
    assert name in capsys.readouterr().out


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The baseline's masks are copied and compared, not encoded; a wrong RLE still has no row."""
    monkeypatch.setattr(baselines, "HAS_PYCOCOTOOLS", False)
    monkeypatch.setattr(masks, "HAS_PYCOCOTOOLS", False)
    for name in ("pycocotools", "pycocotools.mask"):
        monkeypatch.setitem(sys.modules, name, None)
    command = ["bench", "--quick", "--full", "--only", "RLE of 20 masks on 480", "--device", "cpu"]
    assert main(command) == 0
    right = ops.encode_masks
    monkeypatch.setattr(ops, "encode_masks", lambda masks, boxes, size: right(masks, boxes + 1, size))
    assert main(command) == 1
    assert "fastmask does not match torchvision: more differs" in capsys.readouterr().err


def test_rle_is_decoded_as_pycocotools_does() -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="the decoder to compare with")
    masks = torch.rand(9, 13, 21) < torch.linspace(0, 1, 9)[:, None, None]
    encoded = baselines.encode_pasted(masks)
    assert isinstance(encoded[0], dict)
    assert np.array_equal(baselines.decode_masks(encoded), masks.numpy())
    assert np.array_equal(baselines.decode_masks(encoded), coco.decode(encoded).transpose(2, 0, 1))


@pytest.mark.parametrize(
    "name", [*SMALL, "RoIAlign, NCHW", "paste 100 masks as detectron2, bool", "host: read an image"]
)
def test_providers_are_those_declared(name: str) -> None:
    case = CASES[name].build(torch.Generator().manual_seed(0), CPU)
    assert tuple(case.providers) == CASES[name].providers


def case_of(**providers: Any) -> CaseSpec:
    return CaseSpec(lambda *_: Case(providers, lambda ours, theirs: None, "some"), rounds=5)


def test_the_slow_first_call_is_not_timed() -> None:
    """Compilation, capture and the like, on whichever set of inputs it happens first."""
    calls: dict[Any, int] = collections.Counter()

    def build(generator: torch.Generator, device: torch.device) -> Case:
        own = object()

        def run() -> None:
            calls[own] += 1
            time.sleep(0.2 if calls[own] == 1 else 0.001)

        return Case({"fastmask": run}, lambda ours, theirs: None, "some")

    case = measure.prepare_case("slow", CaseSpec(build), CPU)
    times = runner.time_rounds(case, "fastmask", 1.0)
    assert len(times) == 11
    assert max(times) < 0.1


def test_a_failing_provider_takes_nothing_with_it(tmp_path: Path) -> None:
    """Its error is reported; the JSON has the rows before it, whatever comes after."""

    def broken() -> None:
        raise RuntimeError("does not compile\nat all")

    def build(*_: Any) -> Case:
        raise ImportError("no such module")

    specs = {
        "one": case_of(torchvision=dict, other=broken, fastmask=dict),
        "two": CaseSpec(build),
        "late": case_of(a=dict),
    }
    results, wrong = runner.run_cases(dict(list(specs.items())[:2]), CPU, True, tmp_path / "r.json")
    assert [row["extra_info"]["provider"] for row in results["benchmarks"]] == ["torchvision", "fastmask"]
    assert wrong == ["one: other failed: RuntimeError: does not compile", "two: ImportError: no such module"]
    assert len(json.loads((tmp_path / "r.json").read_text())["benchmarks"]) == 2
    results, wrong = runner.run_cases({"late": specs["late"]}, CPU, True, tmp_path / "r.json", limit=-1)
    assert wrong == ["late: not begun after -1 seconds"]
    assert not json.loads((tmp_path / "r.json").read_text())["finished"]


def test_each_row_is_saved_when_it_is_measured(tmp_path: Path) -> None:
    """An interrupt in the middle of a case leaves the rows before it."""
    calls = collections.Counter()

    def killed() -> None:
        calls["killed"] += 1
        if calls["killed"] > 4:  # compared, warmed up, warmed up, and one round
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_cases({"one": case_of(torchvision=dict, fastmask=killed)}, CPU, True, tmp_path / "r.json")
    left = json.loads((tmp_path / "r.json").read_text())
    assert [row["extra_info"]["provider"] for row in left["benchmarks"]] == ["torchvision"]
    assert not left["finished"]


def test_resume_measures_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete cases of the same device and commit are kept; --without: a provider that is left out is not expected."""
    calls = collections.Counter()
    providers = {name: functools.partial(calls.update, [name]) for name in ("torchvision", "torchvision compiled")}
    spec = case_of(**providers)._replace(providers=tuple(providers))
    monkeypatch.setattr(cases, "CASES", {"one": spec, "two": spec})
    command = ["bench", "--quick", "--device", "cpu", "--json", str(tmp_path / "r.json")]
    assert main([*command, "--only", "one", "--without", "compiled"]) == 0
    assert calls["torchvision"] > 0 == calls["torchvision compiled"]
    calls.clear()
    assert main([*command, "--resume", "--without", "compiled"]) == 0
    first = calls["torchvision"]
    results = json.loads((tmp_path / "r.json").read_text())
    assert [row["group"] for row in results["benchmarks"]] == ["one", "two"]
    calls.clear()
    assert main([*command, "--resume", "--without", "compiled"]) == 0
    assert not calls
    monkeypatch.setenv("FASTMASK_COMMIT", "another")
    measure.versions.cache_clear()
    assert main([*command, "--resume", "--without", "compiled"]) == 0
    measure.versions.cache_clear()
    assert calls["torchvision"] == 2 * first


def test_no_such_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "abacus"]) == 2
    assert "--only must match a case's name, got 'abacus'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*SMALL, "RoIAlign, 100 RoIs", "RoIPool", "NMS, RPN, a batch"])
def test_the_captured_call_gives_the_timed_calls_results(name: str) -> None:
    """The op without the host's part: the same values before the host converts them."""
    case = CASES[name].build(torch.Generator().manual_seed(0), CPU)
    captured, timed = case.capturable["fastmask"](), case.providers["fastmask"]()
    if name.startswith("RLE"):
        (buffer, offsets), first = captured, timed[0]["counts"]
        assert bytes(buffer[: offsets[1]].tolist()) == first
        return
    pairs = list(
        zip(*(list(part) if isinstance(part, list | tuple) else [part] for part in (captured, timed)), strict=True)
    )
    assert pairs
    for actual, expected in pairs:
        assert torch.equal(actual[: len(expected)], expected)


@pytest.mark.gpu
def test_device_time() -> None:
    """The time of a captured copy is near that of the call; a call with a host sync cannot be captured."""
    source = torch.ones(2**28, device="cuda")
    target, flush = torch.empty_like(source), measure.flush_buffer(source.device)
    results = [measure_device_time(lambda: target.copy_(source), flush) for _ in range(5)]
    wall = 2 * source.nbytes / measure.copy_bandwidth(source.device)
    for name in ("warm", "flushed"):  # the best of them: tests beside this one use the GPU too
        assert 0.8 * wall < min(times[name] for times in results) < 1.3 * wall
    with pytest.raises(RuntimeError):
        measure_device_time(lambda: source[0].item(), flush)
