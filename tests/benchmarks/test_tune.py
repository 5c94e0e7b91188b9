"""``fastmask tune`` on a fake clock: accepted and rejected choices, and the tuning file."""

import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.images import draw_image
from helpers.slim import slim_pair
from torch import Tensor

import fastmask
from fastmask.benchmarks import tune, tune_cases
from fastmask.benchmarks.tune import Outcome, Quartiles, Trial
from fastmask.benchmarks.tune_cases import Shapes, Workload
from fastmask.kernels import tuning
from fastmask.kernels.knobs import KNOBS, Knob

CPU = torch.device("cpu")
SMALL = Shapes((128, 160), 1, torch.float32)
PROGRAMS, LINES = KNOBS["paste.programs"], KNOBS["paste.lines"]


@pytest.fixture(autouse=True)
def _evict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    for name in ("_tables", "_files"):
        monkeypatch.setattr(tuning, name, {})


def clock(times: Mapping[Any, Sequence[float]], name: str = "paste.programs") -> tune.Timer:
    """A timer whose calls take the given seconds by the knob's value in force, in a cycle."""

    def prepare(run: Callable[[], Any], capturable: bool, device: torch.device) -> Callable[[], float]:
        seconds = itertools.cycle(times[tuning.tuned_value(name, KNOBS[name].default, device)])
        run()
        return lambda: next(seconds)

    return prepare


def workloads(
    result: Callable[[], Tensor] = lambda: torch.ones(3), names: Sequence[str] = ("one",)
) -> dict[str, tune_cases.Build]:
    fixed = [Workload(name, lambda: result) for name in names]
    return dict.fromkeys(("paste_masks", "encode_masks"), lambda shapes, device: fixed)


def run_tune(path: Path, timer: tune.Timer, knobs: Sequence[Knob] = (PROGRAMS,), **options: Any) -> list[Outcome]:
    options = {"workloads": workloads()} | options
    return tune.tune(knobs, CPU, SMALL, path, timer=timer, **options)


def read_values(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["values"]


TIMES = {4096: [10.0, 10.1, 9.9], 2048: [9.0, 9.1, 8.9], 8192: [7.0, 7.1, 6.9], 16384: [5.0, 5.1, 4.9]}


def test_the_fastest_matching_choice_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16384 is faster still, and wrong by a bit."""
    path = tmp_path / "tuning.json"

    def result() -> Tensor:
        wrong = tuning.tuned_value("paste.programs", 4096, CPU) == 16384
        return torch.tensor([1.0, 1.0 + 2**-23 if wrong else 1.0])

    (outcome,) = run_tune(path, clock(TIMES), workloads=workloads(result))
    assert outcome.accepted is not None
    assert outcome.accepted.value == 8192
    assert [trial.rejected.partition(":")[0] for trial in outcome.trials] == ["", "", "does not match"]
    assert outcome.trials[2].seconds == {}  # not even timed
    assert tuning.tuned_value("paste.programs", 4096, CPU) == 4096  # this process goes on as it was

    content = json.loads(path.read_text())
    assert content["values"] == {"paste.programs": 8192}
    assert {"format", "device", "triton", "fastmask", "torch", "commit"} <= content.keys()
    measured = content["measured"]["paste.programs"]
    assert measured["default"] == 4096
    default, choice = measured["trials"][1]["seconds"]["one"]
    assert [default[1], choice[1]] == [10.0, 7.0]
    assert 9.9 <= default[0] <= default[2] <= 10.1
    monkeypatch.setenv("FASTMASK_TUNING", str(path))  # as the next process reads it
    tuning._tables.clear()
    assert tuning.tuned_value("paste.programs", 4096, CPU) == 8192


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ([9.8, 9.8, 9.8], "not faster"),  # 2 %
        ([7.0, 7.0, 13.0], "not faster"),  # 30 %, but within the spread
        ([10.5, 10.5, 10.5], "slower by 5.0%"),
    ],
)
def test_noise_is_rejected(choice: list[float], reason: str, tmp_path: Path) -> None:
    times = {value: [10.0, 10.0, 10.0] for value in PROGRAMS.choices} | {8192: choice}
    (outcome,) = run_tune(tmp_path / "tuning.json", clock(times))
    assert outcome.accepted is None
    assert outcome.trials[1].rejected.startswith(reason)
    assert read_values(tmp_path / "tuning.json") == {}


def test_rejections_on_several_workloads() -> None:
    """A gain on one is no reason to lose on another, unless that loss is nothing or noise."""

    def around(median: float, spread: float = 0.001) -> Quartiles:
        return median * (1 - spread), median, median * (1 + spread)

    usual, gain = around(10), (around(10), around(8))
    assert tune.find_rejection({"a": gain, "b": (usual, around(10.05))}) == ""
    assert tune.find_rejection({"a": gain, "b": (usual, around(10.3, 0.1))}) == ""
    assert tune.find_rejection({"a": gain, "b": (usual, around(10.3))}) == "slower by 3.0%: b"
    assert tune.find_rejection({"a": (usual, usual), "b": (usual, usual)}).startswith("not faster")
    assert tune.ratio(Trial(1, {"a": gain, "b": (usual, around(12.5))}, "")) == pytest.approx(1)


def test_a_failing_choice_is_rejected_and_a_failing_default_reported(tmp_path: Path) -> None:
    def result() -> Tensor:
        if tuning.tuned_value("paste.programs", 4096, CPU) == 16384:
            raise RuntimeError("out of resource: shared memory")
        return torch.ones(3)

    (outcome,) = run_tune(tmp_path / "a.json", clock(TIMES), workloads=workloads(result))
    assert outcome.accepted is not None
    assert outcome.accepted.value == 8192
    assert outcome.trials[2].rejected == "fails: RuntimeError: out of resource: shared memory"

    def broken() -> Tensor:
        raise RuntimeError("an illegal memory access")

    builds = workloads() | {"encode_masks": lambda shapes, device: [Workload("one", lambda: broken)]}
    knobs = (KNOBS["rle.programs"], PROGRAMS)
    first, second = run_tune(tmp_path / "b.json", clock(TIMES), knobs, workloads=builds)
    assert first.error == "RuntimeError: an illegal memory access"
    assert second.accepted is not None
    assert read_values(tmp_path / "b.json") == {"paste.programs": 16384}
    printed = tune.format_table([first, second])
    assert "rle.programs" in printed
    assert "no: RuntimeError: an illegal memory access" in printed


def test_each_knob_is_saved_and_in_force_while_later_ones_are_timed(tmp_path: Path) -> None:
    path, seen = tmp_path / "tuning.json", []

    def timer(run: Callable[[], Any], capturable: bool, device: torch.device) -> Callable[[], float]:
        seen.append(tuning.values_on(device))
        if len(seen) > 4:  # the second knob's
            raise KeyboardInterrupt
        return clock(TIMES)(run, capturable, device)

    with pytest.raises(KeyboardInterrupt):
        run_tune(path, timer, (PROGRAMS, LINES))
    assert read_values(path) == {"paste.programs": 16384}
    assert seen == [{}, *({"paste.programs": v} for v in (2048, 8192, 16384)), {"paste.programs": 16384}]
    assert tuning.values_on(CPU) == {}


def test_tuning_again_removes_a_value_that_is_no_longer_faster(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    run_tune(path, clock(TIMES))
    run_tune(path, clock({8: [1.0], 4: [0.5], 16: [1.0]}, "paste.lines"), (LINES,))
    assert read_values(path) == {"paste.programs": 16384, "paste.lines": 4}
    seen = []

    def timer(run: Callable[[], Any], capturable: bool, device: torch.device) -> Callable[[], float]:
        seen.append(tuning.values_on(device))
        return lambda: 1.0

    run_tune(path, timer)
    assert seen[0] == {"paste.lines": 4}  # the default beside the other knob's value
    assert read_values(path) == {"paste.lines": 4}


def test_no_knob_is_begun_after_the_limit(tmp_path: Path) -> None:
    now = iter([0.0, 10.0, 70.0])
    first, second = run_tune(
        tmp_path / "tuning.json", clock(TIMES), (PROGRAMS, LINES), limit=60, clock=lambda: next(now)
    )
    assert first.accepted is not None
    assert second.error == "not begun after 60 seconds"


def test_concurrent_writers_leave_a_complete_file(tmp_path: Path) -> None:
    """A reader sees one outcome or the other at any time."""
    path, stop, broken = tmp_path / "tuning.json", threading.Event(), []
    outcomes = [
        Outcome(name, 1, [], Trial(KNOBS[name].choices[0], {}, "")) for name in ("paste.programs", "nms.splits")
    ]
    tune.save_outcome(path, "cpu", outcomes[0], SMALL)

    def read() -> None:
        while not stop.is_set():
            try:
                tuning.read_values(path, "cpu")
            except Exception as error:
                broken.append(error)

    def write(outcome: Outcome) -> None:
        for _ in range(30):
            tune.save_outcome(path, "cpu", outcome, SMALL)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(outcome,)) for outcome in outcomes]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert broken == []
    assert [file.name for file in tmp_path.iterdir()] == ["tuning.json"]  # and no temporary ones
    assert read_values(path).items() <= {"paste.programs": 2048, "nms.splits": 4}.items()


def test_another_devices_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tuning.json"
    tune.check_file(path, CPU)
    run_tune(path, clock(TIMES))
    tune.check_file(path, CPU)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"device": "another"}))
    with pytest.raises(ValueError, match=r"must be new or this device's, got .*: device must be 'cpu', got 'another'"):
        tune.check_file(path, CPU)
    with pytest.raises(ValueError, match="device must be"):
        run_tune(path, clock(TIMES))


def test_checks() -> None:
    exact, rounded = tune_cases.choose_check(PROGRAMS), tune_cases.choose_check(KNOBS["roi_align_backward.tile"])
    one = torch.rand(50) + 1
    exact([one, (one,)], [one.clone(), (one,)])
    with pytest.raises(AssertionError, match="1 of 50 elements differ"):
        exact(one, one.clone().index_fill_(0, torch.tensor([3]), 0))
    with pytest.raises(AssertionError, match="shapes differ"):
        exact(one, one[:3])
    rounded([one], [one * (1 + 1e-5)])
    for wrong in (one * 1.001, one.bfloat16() * 1.02):
        with pytest.raises(AssertionError):
            rounded([one.to(wrong.dtype)], [wrong])


@pytest.mark.parametrize("op", tune_cases.WORKLOADS)
def test_workloads_run(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At small shapes on the CPU, with the same result twice."""
    monkeypatch.setattr(tune_cases, "FEW", 1)
    built = tune_cases.WORKLOADS[op](SMALL._replace(model=lambda: slim_pair()[1]), CPU)
    assert len({workload.name for workload in built}) == len(built) > 0
    (knob, *_) = [knob for knob in KNOBS.values() if knob.op == op]
    for workload in built:
        run = workload.make()
        tune_cases.choose_check(knob)(run(), run())
    assert tune_cases.WORKLOADS[op].__doc__


def test_every_knob_has_workloads() -> None:
    assert {knob.op for knob in KNOBS.values()} == tune_cases.WORKLOADS.keys()


def test_a_predictors_setting_is_saved_for_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Predictor of that shape then has it, unless its arguments differ."""
    path, knob = tmp_path / "tuning.json", KNOBS["predictor.mask_buckets"]
    name = "predictor.mask_buckets at 128x160, batch 1, float32"
    torch.manual_seed(7)
    model = slim_pair()[1]
    made = []

    def timer(run: Callable[[], Any], capturable: bool, device: torch.device) -> Callable[[], float]:
        assert not capturable
        made.append(tuning.values_on(device).get(name, False))
        seconds = 2.0 - made[-1]
        return lambda: seconds

    shapes = SMALL._replace(model=lambda: model)
    (outcome,) = tune.tune([knob], CPU, shapes, path, timer=timer)
    assert outcome.accepted is not None, outcome
    assert read_values(path) == {name: True}
    assert made == [False] * (len(made) // 2) + [True] * (len(made) // 2)

    before = path.stat().st_mtime_ns
    usual = fastmask.Predictor(model, (128, 160))
    monkeypatch.setenv("FASTMASK_TUNING", str(path))
    tuning._tables.clear()
    tuned = fastmask.Predictor(model, (128, 160))
    assert usual._buckets is None
    assert tuned._buckets is not None
    for other in (
        fastmask.Predictor(model, (128, 160), mask_buckets=False),
        fastmask.Predictor(model, (128, 160), 2),
        fastmask.Predictor(model, (160, 160)),
        fastmask.Predictor(model, "exact"),
    ):
        assert other._buckets is None
    images = [(draw_image(128, 160)[0] * 255).byte() for _ in range(3)]
    predictions = tuned(images)
    assert sum(len(prediction["boxes"]) for prediction in predictions) > 20
    tune_cases.check_detections(predictions, usual(images))
    assert [*tmp_path.iterdir()] == [path]
    assert path.stat().st_mtime_ns == before
