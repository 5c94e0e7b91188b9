"""The study of variants: its rule of spread, its page, and runs that are not repeated."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools.mask", reason="it evaluates")
pytest.importorskip("matplotlib", reason="it draws a plot")

from helpers.pages import PAGES

from fastmask.benchmarks import study, study_report
from fastmask.benchmarks.study_report import Row, collect_rows, fill_page, format_table, judge, standard_error


def make_row(name: str, *ap: float) -> Row:
    return Row(name, list(ap), list(ap), list(ap), 1000, 1.0)


def test_what_the_spread_allows() -> None:
    """Two samples of standard deviation 0.01, hence an error of 0.01 * sqrt(2 / 3) of a difference of means of 3."""
    first = make_row("first", 0.49, 0.5, 0.51)
    close, above, below = (
        make_row(name, *(value + by for value in first.ap)) for name, by in (("a", 0.024), ("b", 0.025), ("c", -0.025))
    )
    rows = [first, close, above, below]
    assert standard_error(rows) == pytest.approx(0.01 * (2 / 3) ** 0.5)  # 0.00816, of which 3 are 0.0245
    assert [judge(row, rows) for row in rows] == ["", "no difference shown", "better", "**worse**"]
    assert judge(above._replace(box_ap=first.box_ap), rows, "box_ap") == "no difference shown"
    wide = make_row("wide", 0.4, 0.5, 0.6)
    assert standard_error([first, wide]) == pytest.approx(((0.01**2 + 0.1**2) / 2 * 2 / 3) ** 0.5)


def test_every_variant_starts_as_the_baseline_does() -> None:
    """Where a weight has the same name and shape; the others are the seed's."""
    first = study.build_model(study.BASELINE, 5).state_dict()
    for name in study.VARIANTS:
        state = study.build_model(name, 5).state_dict()
        same = [key for key, value in state.items() if key in first and first[key].shape == value.shape]
        assert len(same) > 0.8 * len(first), name
        assert all(bool((state[key] == first[key]).all()) for key in same), name
    other = study.build_model(study.BASELINE, 6).state_dict()
    assert not bool((other["backbone.body.conv1.weight"] == first["backbone.body.conv1.weight"]).all())


def test_page_has_the_table_of_the_results() -> None:
    page = PAGES["benchmarks/README.md"]
    if not study_report.RESULTS.exists():
        assert study_report.MARKERS[0] not in page
        return
    results = json.loads(study_report.RESULTS.read_text())
    assert fill_page(page, format_table(results)) == page
    rows = collect_rows(results)
    assert [row.name for row in rows] == list(study.VARIANTS)
    assert all(len(row.ap) == len(study.SEEDS) for row in rows)
    with pytest.raises(ValueError, match="the page must have"):
        fill_page("none", "")


def test_runs_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "RESULTS", tmp_path / "study.json")
    monkeypatch.setattr(study, "write_readme", lambda results: None)
    monkeypatch.setattr(study, "ROUNDS", 1)
    made: list[tuple[str, int]] = []

    def run_here(folder: Path, names: Any, seeds: Any, processes: int, settings: study.Settings) -> None:
        for name in names:
            for seed in seeds:
                made.append((name, seed))
                study.run(folder, name, seed, settings)

    monkeypatch.setattr(study, "run_all", run_here)
    words = [str(tmp_path / "study"), "--only", study.BASELINE, "RoIPool", "--seeds", "7", "8", "--images", "8"]
    words += ["--val-images", "2"]
    assert study.main(words) == 0
    files = sorted((tmp_path / "study" / "runs").glob("*.json"))
    times = [file.stat().st_mtime_ns for file in files]
    assert study.main([*words, "--save"]) == 0
    assert [file.stat().st_mtime_ns for file in files] == times
    results = json.loads((tmp_path / "study.json").read_text())
    assert results["milliseconds"].keys() == {study.BASELINE, "RoIPool"}
    assert [run["variant"] for run in results["runs"]] == [study.BASELINE] * 2 + ["RoIPool"] * 2
    assert (tmp_path / "study.png").exists()
    assert all(run["parameters"] > 2e6 for run in results["runs"])
    assert study.main([*words[:-4], "--images", "9", "--val-images", "2"]) == 2
    assert "FOLDER must have runs of the same settings" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        study.main(["--seeds", "7", "--save"])
    assert "--seeds must be two or more to be saved, got 7" in capsys.readouterr().err
