"""Predicted times: their counts against executed kernels, and their table against the data."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmask.kernels.launch import HAS_TRITON, INTERPRET

if INTERPRET or not HAS_TRITON:
    pytest.skip("compiles ahead of time, which Triton's interpreter cannot", allow_module_level=True)

import triton
from helpers.ptx import Options, launched

from fastmask.kernels.predict import (
    assembly,
    attribution,
    class_masks,
    keypoints,
    machine,
    masks,
    nms,
    preprocess,
    roi_align,
    roi_align_backward,
    schedule,
    table,
)
from fastmask.kernels.predict.case import Built
from fastmask.kernels.predict.model import Work, cost, predict
from fastmask.kernels.predict.record import Launch, TorchOp, record
from fastmask.kernels.triton import class_masks as class_masks_triton, roi_bins as roi_bins_triton


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


SMALL: dict[str, Callable[[torch.Generator], Built]] = {
    "NMS in groups": functools.partial(nms.build, num=250, groups=3, threshold=0.5, most=300),
    "NMS of one group": functools.partial(nms.build, num=200, groups=1, threshold=0.5, most=200),
    "RoIAlign": functools.partial(roi_align.build, num=2, batch=1, dtype=torch.bfloat16, channels_last=True),
    "RoIAlign backward": functools.partial(
        roi_align_backward.build,
        num=5,
        batch=1,
        dtype=torch.bfloat16,
        size=(128, 160),
        pooling=roi_align.PYRAMID._replace(channels=64),
    ),
    "RoIAlign on C4": functools.partial(
        roi_align.build, num=1, batch=1, dtype=torch.bfloat16, channels_last=True, pooling=roi_align.C4
    ),
    "RoIAlign backward on C4": functools.partial(
        roi_align_backward.build,
        num=2,
        batch=1,
        dtype=torch.bfloat16,
        size=(128, 160),
        pooling=roi_align.C4._replace(channels=256),
        channels_last=True,
    ),
    "paste": functools.partial(masks.build_paste, num=2, size=(110, 130)),
    "RLE": functools.partial(masks.build_encode, num=2, size=(200, 260)),
    "mask branch": functools.partial(class_masks.build, num=3, batch=1, dtype=torch.bfloat16, found=2, channels=64),
    "mask branch in steps": functools.partial(
        class_masks.build, num=4, batch=1, dtype=torch.float32, found=2, channels=70, side=12
    ),
    "keypoints": functools.partial(keypoints.build, num=2, points=2, side=12, size=(60, 90)),
    "preprocessing": functools.partial(
        preprocess.build, batch=2, dtype=torch.bfloat16, size=(20, 30), resized=(30, 45), padded=(40, 64)
    ),
}
QUICK = ("NMS in groups", "RoIAlign")


def record_located(run: Callable[[], object]) -> list[Launch | TorchOp]:
    try:
        return record(run)
    except RuntimeError as error:
        if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_counts_are_those_of_executed_kernels(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instructions and barriers of the PTX, computed from trip counts, against those that the interpreter executes."""
    for tile in (class_masks_triton.AT_ONCE, class_masks_triton.IN_STEPS):
        monkeypatch.setitem(tile, "ROWS", 32)  # 64 are wgmma, which it does not execute
    run, works = SMALL[name](torch.Generator().manual_seed(seed))
    launches = [event for event in record_located(run) if isinstance(event, Launch)]
    images = run.args[0] if name == "preprocessing" else []  # whose addresses stand in a table
    with launched(90, Options(races=False), reached=images) as runs:
        run()
    left = {launch.name: [work for work in works() if work.kernel == launch.name] for launch in launches}
    for launch, executed in zip(launches, runs, strict=True):
        work = left[launch.name].pop(0) if left[launch.name] else Work(launch.name)
        instructions, barriers = count(launch, work)
        assert instructions == pytest.approx(executed.instructions, rel=0.1), launch.name
        assert barriers == pytest.approx(executed.barriers, abs=1), launch.name


def count(launch: Launch, work: Work) -> tuple[float, float]:
    """PTX instructions of all warps, and barriers of all programs."""
    code = assembly.parse_ptx(launch.ptx)
    instructions = barriers = 0.0
    for number, _, trips in attribution.executions(code, work.trips):
        times = float(np.broadcast_to(np.asarray(trips, float), launch.programs).sum())
        block = code.blocks[number].instructions
        instructions += times * launch.warps * len(block)
        barriers += times * sum(instruction.opcode.startswith("bar.sync") for instruction in block)
    return instructions, barriers


@pytest.fixture(scope="module")
def recorded() -> tuple[list[Launch | TorchOp], list[Work]]:
    run, works = SMALL["NMS in groups"](torch.Generator().manual_seed(0))
    return record_located(run), works()


def test_what_is_launched_and_what_is_around_it(recorded: tuple[list[Launch | TorchOp], list[Work]]) -> None:
    events, works = recorded
    prediction = predict(events, works)
    assert {launch.kernel for launch in prediction.launches} >= {work.kernel for work in works}
    for launch in prediction.launches:
        assert launch.registers > 0
        assert 0 < launch.issue <= launch.pipe <= launch.expected
        assert launch.longest <= launch.expected
    assert 0 < prediction.ideal <= prediction.expected


def test_sorts_around_the_kernels_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward's RoIs are sorted by torch where they are many."""
    monkeypatch.setattr(roi_bins_triton, "COUNTED", 0)
    run, _ = SMALL["RoIAlign backward"](torch.Generator().manual_seed(0))
    assert "aten::sort" in [event.name for event in record_located(run) if isinstance(event, TorchOp)]


def test_a_description_that_does_not_fit_is_an_error(recorded: tuple[list[Launch | TorchOp], list[Work]]) -> None:
    events, works = recorded
    launch = next(event for event in events if isinstance(event, Launch))
    with pytest.raises(ValueError, match="works: must be of kernels that are launched"):
        predict(events, [*works, Work("fly")])
    with pytest.raises(ValueError, match=r"trips: must say how often `.*` runs"):
        cost(launch, works[0]._replace(trips={}))
    with pytest.raises(ValueError, match=r"`for fly` must be the beginning of a loop"):
        cost(launch, works[0]._replace(trips=dict(works[0].trips) | {"for fly": 1}))


def test_resident_programs() -> None:
    assert machine.resident(registers=32, shared_bytes=0, warps=8) == 8  # of 64 warps
    assert machine.resident(registers=255, shared_bytes=0, warps=8) == 1
    assert machine.resident(registers=80, shared_bytes=0, warps=8) == 3
    assert machine.resident(registers=16, shared_bytes=0, warps=1) == 32
    assert machine.resident(registers=16, shared_bytes=100_000, warps=4) == 2


def test_schedule() -> None:
    """Programs run side by side until they want more of a pipe than there is, and one after the other then."""
    places = machine.MULTIPROCESSORS
    idle, busy = np.zeros(4 * places), np.full(4 * places, 1000.0)
    alone = np.full(4 * places, 1000.0)
    assert schedule.makespan(alone, idle, 4) == pytest.approx(1000)
    assert schedule.makespan(alone, idle, 2) == pytest.approx(2000)
    assert schedule.makespan(alone, busy, 4) == pytest.approx(4000 / machine.EFFICIENCY)
    assert schedule.makespan(np.array([10.0, 3000, 10]), np.zeros(3), 1) == pytest.approx(3000)


def test_readme_has_the_table_of_the_data() -> None:
    versions = table.load_versions()
    assert {row["op"] for version in versions for row in version["rows"]} == set(table.CASES)
    between = table.README.read_text().split(table.MARKERS[0])[1].split(table.MARKERS[1])[0]
    assert between.strip() == table.format_table(versions)


def test_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = next(row for row in table.load_versions()[0]["rows"] if "classes" in row["op"])
    saved, readme = tmp_path / "predictions.json", tmp_path / "README.md"
    readme.write_text("before\n" + "\nold\n".join(table.MARKERS) + "\nafter\n")
    monkeypatch.setattr(table, "SAVED", saved)
    monkeypatch.setattr(table, "README", readme)
    monkeypatch.setattr(table, "predict_case", {row["op"]: row}.__getitem__)
    for version in ("one", "two", "one"):
        arguments = f"predict --only classes --phases --save {version} --commit abc --write-readme"
        monkeypatch.setattr("sys.argv", arguments.split())
        table.main()
    printed = capsys.readouterr().out
    assert f"| {row['op']} | one | **" in printed
    assert "instructions x" in printed
    versions = json.loads(saved.read_text())["versions"]
    assert [(version["version"], version["rows"]) for version in versions] == [("one", [row]), ("two", [row])]
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert f"| {row['op']} | two | **" in text
    assert "old" not in text
    monkeypatch.setattr("sys.argv", ["predict", "--only", "classes", "--json"])
    table.main()
    assert json.loads(capsys.readouterr().out) == [row]
    infos = [{"provider": "torchvision", "device_time": None}, {"provider": "fastmask", "device_time": {"warm": 12e-6}}]
    rows = [{"group": table.MEASURED_BY[row["op"]], "extra_info": info} for info in infos]
    (tmp_path / "gpu.json").write_text(json.dumps({"benchmarks": rows}))
    monkeypatch.setattr("sys.argv", ["predict", "--measured", str(tmp_path / "gpu.json")])
    table.main()
    (one,), (last,) = (version["rows"] for version in json.loads(saved.read_text())["versions"])
    assert (one["measured"], last["measured"]) == (None, 12.0)
    assert readme.read_text().count(" | 12 |") == 1


def test_measured_by_cases_that_there_are() -> None:
    from fastmask.benchmarks.cases import CASES as BENCHMARKS

    assert table.MEASURED_BY.keys() <= table.CASES.keys()
    assert set(table.MEASURED_BY.values()) <= BENCHMARKS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", table.CASES)
def test_the_last_row_of_each_op_is_that_of_its_kernels(name: str) -> None:
    """A changed kernel needs a new row: ``--save VERSION --write-readme``."""
    version, row = [(v, r) for v in table.load_versions() for r in v["rows"] if r["op"] == name][-1]
    if version["triton"] != triton.__version__:
        pytest.skip(f"the row was made with Triton {version['triton']}")
    assert table.predict_case(name)["predicted"] == pytest.approx(row["predicted"], rel=0.02)
