"""The benchmarks themselves: refuse wrong answers, run without torchvision, and report what was measured."""

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
from fastmask.benchmarks import baselines, cases, measure, report, results_io, runner
from fastmask.benchmarks.case import Case, Entry
from fastmask.benchmarks.cases import CASES, masks, model, nms, roi_align
from fastmask.benchmarks.device_time import measure_device_time
from fastmask.benchmarks.scaling import grown
from fastmask.cli import main

CPU = torch.device("cpu")
SMALL = ("NMS, 1k in 80 classes, random", "RLE of 20 masks on 480 x 640", "paste 20 masks on 480 x 640, packed")


def off_by_a_row(*args: Any, **options: Any) -> Tensor:
    return ops.masks.paste_masks(*args, **options).roll(1, dims=-2)


def test_a_wrong_kernel_has_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Off by one row: refused, beside torchvision and beside the reference; cases that agree have theirs."""
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
            assert f"no row: {name}: fastmask does not agree with {baseline}: " in printed


def test_pytest_refuses_as_well(tmp_path: Path) -> None:
    """The same in ``pytest benchmarks``: an error, and nothing in its JSON."""
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
    assert "paste 20 masks on 480 x 640, bool: fastmask does not agree with torchvision" in done.stdout


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
    assert "fastmask does not agree with torchvision: more differs" in capsys.readouterr().err


def test_rle_is_decoded_as_pycocotools_does() -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="what is decoded like it")
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


def case_of(**providers: Any) -> Entry:
    return Entry(lambda *_: Case(providers, lambda ours, theirs: None, "some"), rounds=5)


def test_what_is_slow_once_is_not_timed() -> None:
    """Compiling, capturing and the like, on whichever set of inputs it happens first."""
    calls: dict[Any, int] = collections.Counter()

    def build(generator: torch.Generator, device: torch.device) -> Case:
        own = object()

        def run() -> None:
            calls[own] += 1
            time.sleep(0.2 if calls[own] == 1 else 0.001)

        return Case({"fastmask": run}, lambda ours, theirs: None, "some")

    case = measure.checked("slow", Entry(build), CPU)
    times = runner.seconds(case, "fastmask", 1.0)
    assert len(times) == 11
    assert max(times) < 0.1


def test_a_failing_provider_takes_nothing_with_it(tmp_path: Path) -> None:
    """Its reason is told; the JSON has what was measured before, whatever comes after."""

    def broken() -> None:
        raise RuntimeError("does not compile\nat all")

    def build(*_: Any) -> Case:
        raise ImportError("no such module")

    entries = {
        "one": case_of(torchvision=dict, other=broken, fastmask=dict),
        "two": Entry(build),
        "late": case_of(a=dict),
    }
    results, wrong = runner.measured(dict(list(entries.items())[:2]), CPU, True, tmp_path / "r.json")
    assert [row["extra_info"]["provider"] for row in results["benchmarks"]] == ["torchvision", "fastmask"]
    assert wrong == ["one: other failed: RuntimeError: does not compile", "two: ImportError: no such module"]
    assert len(json.loads((tmp_path / "r.json").read_text())["benchmarks"]) == 2
    results, wrong = runner.measured({"late": entries["late"]}, CPU, True, tmp_path / "r.json", limit=-1)
    assert wrong == ["late: not begun after -1 seconds"]
    assert not json.loads((tmp_path / "r.json").read_text())["finished"]


def test_each_row_is_saved_when_it_is_measured(tmp_path: Path) -> None:
    """What a run that is cut in the middle of a case leaves."""
    calls = collections.Counter()

    def killed() -> None:
        calls["killed"] += 1
        if calls["killed"] > 4:  # compared, warmed up, warmed up, and one round
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.measured({"one": case_of(torchvision=dict, fastmask=killed)}, CPU, True, tmp_path / "r.json")
    left = json.loads((tmp_path / "r.json").read_text())
    assert [row["extra_info"]["provider"] for row in left["benchmarks"]] == ["torchvision"]
    assert not left["finished"]


def test_resume_measures_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole cases of the same device and commit are kept; without: a provider that is left out is not missed."""
    calls = collections.Counter()
    providers = {name: functools.partial(calls.update, [name]) for name in ("torchvision", "torchvision compiled")}
    entry = case_of(**providers)._replace(providers=tuple(providers))
    monkeypatch.setattr(cases, "CASES", {"one": entry, "two": entry})
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


def test_a_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"benchmarks": [], "datetime": ""}')
    assert report.main([str(tmp_path / "run.json")]) == 2
    assert "there are no rows" in capsys.readouterr().err


def test_no_such_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "abacus"]) == 2
    assert "--only must be found in a case's name, got 'abacus'" in capsys.readouterr().err


def row(group: str, provider: str, median: float, **info: Any) -> dict[str, Any]:
    facts = {"inputs": "some", "min_bytes": 10**6, "copy_bandwidth": 1e9, "scales": [], "peak_memory": None}
    facts |= {"device": "abacus", "torch": "2", "torchvision": "0", "triton": None, "fastmask": "0", "commit": "abc"}
    stats = {"median": median, "q1": median / 2, "q3": median * 2}
    return {"group": group, "stats": stats, "extra_info": facts | {"provider": provider} | info}


@pytest.fixture
def results() -> dict[str, Any]:
    rows = [
        row("one", "torchvision", 0.010),
        row("one", "torchvision at its best", 0.004),
        row("one", "fastmask", 0.005),
    ]
    rows += [row("model", "torchvision", 1.0, min_bytes=None, peak_memory=2**30)]
    rows += [row("model", "fastmask Predictor, float32", 0.5, min_bytes=None, peak_memory=2**29)]
    for number in (10, 100, 1000):
        scales = [["sort", "items", number]]
        rows += [row(f"sort {number}", "fastmask", 1e-6 * number**1.5, scales=scales)]
    return {"benchmarks": rows, "datetime": "2026-01-01T00:00:00"}


def test_report(results: dict[str, Any]) -> None:
    lines = report.report(results).split("\n")
    (one,) = (line for line in lines if line.startswith("| one<br>"))
    assert one.endswith("| 5 (2.5-10) | 2.00 | **0.80** | 20.0% |")  # a loss beside the best baseline is bold
    (model,) = (line for line in lines if line.startswith("| model, Predictor, float32<br>"))
    assert model.endswith("| 500 (250-1e+03) | 2.00 |  |  |")
    assert "| model | torchvision 1024, fastmask Predictor, float32 512 |" in lines
    assert "| sort | items, 10 to 1000 | fastmask 1.50 |" in lines
    assert lines[0].startswith("abacus; torch 2, torchvision 0, fastmask 0 at abc, 2026-01-01.")


def test_device_times_have_a_column(results: dict[str, Any]) -> None:
    """Only where a GPU measured some; a capture that failed is said, not left out."""
    assert "on the device" not in report.report(results) + runner.plain(results)
    times = {"warm": 31.4e-6, "flushed": 40.25e-6}
    results["benchmarks"][2]["extra_info"]["device_time"] = times
    results["benchmarks"][4]["extra_info"]["device_time"] = {"error": "RuntimeError: it waits"}
    lines = report.report(results).split("\n")
    (one,) = (line for line in lines if line.startswith("| one<br>"))
    assert one.endswith("| 20.0% | 31.4 (40.25) us |")
    (model,) = (line for line in lines if line.startswith("| model, Predictor, float32<br>"))
    assert model.endswith("| not captured |")
    assert "31.4 (40.25) us" in runner.plain(results)
    widths = {
        line.count("|") for line in lines if line.startswith(("| one<br>", "| model, P", "| |", "|---|---|---|---|"))
    }
    assert len(widths - {4, 3}) == 1


@pytest.mark.parametrize("name", [*SMALL, "RoIAlign, 100 RoIs", "RoIPool", "NMS, RPN, a batch"])
def test_what_is_captured_is_what_is_timed(name: str) -> None:
    """The op without the host's part: the same results, before what the host makes of them."""
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
    """A graph's own time: of a copy of a gigabyte, what events around it say; a call that waits cannot be captured."""
    source = torch.ones(2**28, device="cuda")
    target, flush = torch.empty_like(source), measure.flush_buffer(source.device)
    every = [measure_device_time(lambda: target.copy_(source), flush) for _ in range(5)]
    wall = 2 * source.nbytes / measure.copy_bandwidth(source.device)
    for name in ("warm", "flushed"):  # the best of them: tests beside this one use the GPU too
        assert 0.8 * wall < min(times[name] for times in every) < 1.3 * wall
    with pytest.raises(RuntimeError):
        measure_device_time(lambda: source[0].item(), flush)


def test_growth_needs_three_points(results: dict[str, Any]) -> None:
    results["benchmarks"].pop()
    assert grown(results_io.groups(results)) == {}


def test_plots(results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra train")
    (tmp_path / "run.json").write_text(json.dumps(results))
    assert report.main([str(tmp_path / "run.json"), "--plots", str(tmp_path / "plots")]) == 0
    made = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert made == ["run-bandwidth.png", "run-bars.png", "run-growth.png"]
    assert all(str(tmp_path / "plots" / name) in capsys.readouterr().out for name in made[:1])


def test_plots_say_what_they_need(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "run.json").write_text(json.dumps(results))
    assert report.main([str(tmp_path / "run.json"), "--plots", str(tmp_path)]) == 2
    assert "plots need matplotlib: pip install 'fastmask-rcnn[train]'" in capsys.readouterr().err
