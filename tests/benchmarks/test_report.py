"""Reports of results: tables with units, nine rows in short, and plots."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fastmask.benchmarks import report, results_io
from fastmask.benchmarks.cases import CASES
from fastmask.benchmarks.scaling import fit_scaling


def test_a_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"benchmarks": [], "datetime": ""}')
    assert report.main([str(tmp_path / "run.json")]) == 2
    assert "there are no rows" in capsys.readouterr().err


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
    results["benchmarks"].insert(0, row("one", "torchvision patched", 0.002))  # shown, and not a baseline
    lines = report.format_report(results).split("\n")
    (one,) = (line for line in lines if line.startswith("| one<br>"))
    assert one.endswith("| 5.0 ms (2.5-10.0) | 2.00x | **0.80x** | 20.0% |")  # a loss beside the best baseline is bold
    assert "<br>torchvision at its best: 4.0 ms (2.0-8.0)" in one
    assert "torchvision patched: 2.0 ms" in one
    (model,) = (line for line in lines if line.startswith("| model, Predictor, float32<br>"))
    assert model.endswith("| 500 ms (250-1000) | 2.00x |  |  |")
    assert "| model | torchvision 1024 MiB, fastmask Predictor, float32 512 MiB |" in lines
    assert "| sort | items, 10 to 1000 | fastmask 1.50 |" in lines
    assert lines[0].startswith("abacus; torch 2, torchvision 0, fastmask 0 at abc, 2026-01-01. Median times")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (4.66e-5, "0.047 ms"),
        (9.96e-4, "1.0 ms"),
        (3.266e-3, "3.3 ms"),
        (9.96e-3, "10 ms"),
        (0.0608, "61 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (3.696, "3.70 s"),
        (4065.78, "4065.78 s"),
    ],
)
def test_times_have_units_and_no_exponents(seconds: float, text: str) -> None:
    assert report.format_time(seconds) == text


def test_speedups_and_shares() -> None:
    assert [report.format_speedup(value) for value in (0.5, 0.999, 1.004, 9.9, 16.24, 408.9)] == [
        "**0.50x**", "**1.00x**", "1.00x", "9.90x", "16.2x", "409x",
    ]  # fmt: skip
    assert [report.format_share(part, 1e4) for part in (None, 1, 10.1, 2000)] == ["", "< 0.1%", "0.1%", "20.0%"]


def test_the_short_table_has_nine_rows_or_none(tmp_path: Path) -> None:
    """Each is a declared case beside torchvision; a row that the results lack is an error."""
    assert len(report.SHORT) == 9
    rows = []
    for name, provider in report.SHORT:
        assert {"torchvision", provider} <= {*CASES[name].providers}
        rows += [row(name, "torchvision", 0.5), row(name, "torchvision patched", 0.1), row(name, provider, 1.0)]
    (tmp_path / "run.json").write_text(json.dumps({"benchmarks": rows, "datetime": "2026-01-01T00:00:00"}))
    path = tmp_path / "README.md"
    end = "<!-- /report -->\n"
    path.write_text(f"a\n<!-- report: run.json short -->\nb\n{end}<!-- report: run.json -->\n{end}c\n")
    assert report.main([str(path)]) == 0
    short, full = path.read_text().split(end)[:2]
    assert short.startswith("a\n<!-- report: run.json short -->\nabacus; ")
    table = [line for line in short.splitlines() if line.startswith("|")]
    assert table[0] == "| operation | torchvision | fastmask | speedup |"
    assert len(table) == 2 + 9
    assert table[-1] == "| encode 100 masks as COCO RLE | 500 ms | 1.00 s | **0.50x** |"
    assert ("patched" in short, "patched" in full) == (False, True)
    before = path.read_text()
    (tmp_path / "run.json").write_text(json.dumps({"benchmarks": rows[:-1], "datetime": "2026-01-01T00:00:00"}))
    assert report.main([str(path)]) == 2
    assert path.read_text() == before


def test_device_times_have_a_column(results: dict[str, Any]) -> None:
    """Only where a GPU measured some; a failed capture is reported, not left out."""
    assert "device time" not in report.format_report(results) + report.format_summary(results)
    results["benchmarks"][2]["extra_info"]["device_time"] = {"warm": 31.4e-6, "flushed": 40.25e-6}
    results["benchmarks"][4]["extra_info"]["device_time"] = {"error": "RuntimeError: it waits"}
    lines = report.format_report(results).split("\n")
    (one,) = (line for line in lines if line.startswith("| one<br>"))
    assert one.endswith("| 20.0% | 0.031 ms (0.040) |")
    (model,) = (line for line in lines if line.startswith("| model, Predictor, float32<br>"))
    assert model.endswith("| not captured |")
    assert "0.031 ms (0.040)" in report.format_summary(results)
    widths = {line.count("|") for line in lines if line.startswith(("| one<br>", "| model, P", "|---|---|---|---|"))}
    assert len(widths) == 1


def test_scaling_needs_three_points(results: dict[str, Any]) -> None:
    results["benchmarks"].pop()
    assert fit_scaling(results_io.group_rows(results)) == {}


def test_plots(results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra train")
    (tmp_path / "run.json").write_text(json.dumps(results))
    assert report.main([str(tmp_path / "run.json"), "--plots", str(tmp_path / "plots")]) == 0
    made = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert made == ["run-roofline.png", "run-scaling.png", "run-speedup.png"]
    assert all(str(tmp_path / "plots" / name) in capsys.readouterr().out for name in made[:1])


def test_plots_say_what_they_need(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "run.json").write_text(json.dumps(results))
    assert report.main([str(tmp_path / "run.json"), "--plots", str(tmp_path)]) == 2
    assert "plots need matplotlib: pip install 'fastmask-rcnn[train]'" in capsys.readouterr().err
