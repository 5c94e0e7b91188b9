"""The table of runtimes: what is measured, what is left out, and the page that has it. All runtimes: slow."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools.mask", reason="it evaluates")
pytest.importorskip("matplotlib", reason="it draws a plot")

import torch
from helpers.pages import PAGES

from fastmask.benchmarks import runtimes, runtimes_report
from fastmask.benchmarks.runtimes import Row
from fastmask.benchmarks.runtimes_report import MARKERS, RESULTS, fill_page, format_section, format_table

PAGE = "export/README.md"


def test_page_has_the_table_of_the_results() -> None:
    if RESULTS.exists():
        section = format_section(json.loads(RESULTS.read_text()), RESULTS.with_suffix(".png"))
        assert fill_page(PAGES[PAGE], section, MARKERS) == PAGES[PAGE]
    else:
        assert f"{MARKERS[0]}\n**Not measured yet.**\n{MARKERS[1]}" in PAGES[PAGE]


def test_rows_are_measured_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the slim model, of which the first image with three detections is taken."""
    own = [row for row in runtimes.ROWS if row.name in ("torchvision", "eager", "Predictor, float32")]
    broken = Row("another", "exported", "no_such_module")
    emulated = Row("Predictor, bfloat16", "predictor", dtype=torch.bfloat16)
    monkeypatch.setattr(runtimes, "ROWS", (*own, broken, emulated))
    monkeypatch.setattr(runtimes, "EVALUATED", 2)
    monkeypatch.setattr(runtimes, "has_native_bfloat16", lambda: False)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    monkeypatch.setattr(runtimes_report, "README", page)
    words = ["--only", "slim", "--rounds", "2", "--save", str(tmp_path / "times.json"), "--write-readme"]
    assert runtimes.main(words) == 0
    results = json.loads((tmp_path / "times.json").read_text())
    assert results["finished"]
    assert [row["extra_info"]["provider"] for row in results["benchmarks"]] == ["eager", "Predictor, float32"]
    for row in results["benchmarks"]:
        assert row["group"] == "slim, 3 detections"
        assert row["stats"]["rounds"] == 2
        assert row["stats"]["median"] > 0
        assert row["extra_info"]["detections"] == 3
        assert row["extra_info"]["agreement"] == 1
        assert f", {torch.get_num_threads()} thread" in row["extra_info"]["device"]
    reasons = {
        "another": "ImportError: no_such_module is not installed",
        "Predictor, bfloat16": "ValueError: this processor has no bfloat16",
    }
    assert results["left out"] == reasons
    assert "left out: another: ImportError: no_such_module is not installed" in capsys.readouterr().err
    assert page.read_text() == (
        f"before\n{MARKERS[0]}\n{format_table(results)}\n![times of each runtime as bars](times.png)\n"
        f"{MARKERS[1]}\nafter\n"
    )
    assert (tmp_path / "times.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="2"):
        runtimes.main(["--rounds", "1"])
    assert "--rounds must be at least 2, got 1" in capsys.readouterr().err


def test_table() -> None:
    """A cell for each image of a runtime; none where it was not measured."""
    results: dict[str, Any] = {"benchmarks": [], "datetime": "2026-01-02T03:04", "left out": {"c": "why"}}
    info = {"device": "a CPU", "torch": "2", "torchvision": None, "triton": None, "fastmask": "0", "commit": "abc"}
    info |= {"onnxruntime": "1", "openvino": None}
    for group, name, median, ap in (("x", "a", 1.5, None), ("x", "b", 0.02, None), ("y", "b", 0.01, 0.8125)):
        stats = {"median": median, "q1": median, "q3": 2 * median, "rounds": 5}
        row = {"provider": name, "agreement": 0.996, "mask_ap": ap, "evaluated": 60, **info}
        results["benchmarks"].append({"group": group, "stats": stats, "extra_info": row})
    lines = format_table(results).splitlines()
    assert lines[0].startswith("a CPU; torch 2, fastmask 0 at abc, 2026-01-02; onnxruntime 1. Median times")
    assert lines[0].endswith("Mask AP is that of the last column's model, on 60 synthetic images.")
    assert lines[2:6] == [
        "| runtime | x | y | mask AP |",
        "|---|---|---|--:|",
        "| a | 1.50 s (1.50-3.00), 99.6% |  |  |",
        "| b | 20 ms (20-40), 99.6% | 10 ms (10-20), 99.6% | 0.812 |",
    ]
    assert lines[-1] == "Not measured: c (why)."


@pytest.mark.slow
def test_every_runtime() -> None:
    """All that is installed, on the slim model: float32 agrees, and bfloat16 has its AP."""
    results = runtimes.measure_all(["slim"], 2)
    rows = {row["extra_info"]["provider"]: row["extra_info"] for row in results["benchmarks"]}
    assert {"eager", "AOTInductor", "ONNX Runtime"} <= set(rows)
    for name, row in rows.items():
        if "bfloat16" not in name:
            assert row["agreement"] == 1, name
        if row["mask_ap"] is not None:
            assert row["mask_ap"] == pytest.approx(rows["ONNX Runtime"]["mask_ap"], abs=0.02), name
