"""``benchmarks/run_gpu.sh DIR [PART...]``: tests and measurements that need a GPU, in parts, the most important first.

Each part is independent, is interrupted at its time limit, and writes its JSON into DIR as it goes, beside log.txt.
Finished parts are not run again, so that a repeated call continues an interrupted one; all parts together leave at most
eight files. A call ends before ten minutes, as many machines are lent for no longer.

Environment: LIMIT, seconds of each part; CALL, seconds of all of them; DEVICE=cpu tries the parts themselves (CPU tests
instead of those that need a GPU); TESTS, SELECTION (pytest's -k, or a pattern of cases) and ROUNDS shrink a part.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple
from xml.etree import ElementTree

CALL = 570  # seconds of all parts of one call
MIN_SECONDS = 20  # with less time left, no part is begun
GRACE = 15  # seconds to save results after a part's time limit
WORKERS = 14  # of pytest: kernels compile on a core each; 735 tests took 114 seconds beside an H200
TOOLS = ("memcheck", "initcheck", "racecheck")


class Setting(NamedTuple):
    """Options of all parts."""

    folder: Path
    device: str
    full: bool
    again: bool
    environment: Mapping[str, str]


class Part(NamedTuple):
    """How a part is run: its command for a time limit, and a function that saves its status."""

    file: str  # in DIR
    limit: float  # seconds, unless it is the only part
    command: Callable[[Setting, float], list[str]]
    finish: Callable[[Setting, int | None], None] = lambda *_: None
    section: str | None = None  # key in a file that parts share


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if every part has finished and nothing failed in it; 1 otherwise; 2 on wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/run_gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    usual = [name for name in PARTS if name not in ON_REQUEST]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; none: {', '.join(usual)}")
    parser.add_argument("--again", action="store_true", help="also run finished parts")
    parser.add_argument("--full", action="store_true", help="all benchmark cases, not only the default ones")
    args = parser.parse_intermixed_args(argv)
    for name in args.parts:
        if name not in PARTS:
            parser.error(f"the part must be one of {', '.join(PARTS)}, got {name}")
    environment = os.environ
    args.folder.mkdir(parents=True, exist_ok=True)
    device = environment.get("DEVICE", "cuda")
    setting = Setting(args.folder.resolve(), device, args.full, args.again, environment)
    end = time.monotonic() + float(environment.get("CALL", CALL))
    names = args.parts or usual
    with (setting.folder / "log.txt").open("a") as log:
        if not args.parts:
            tee([sys.executable, "-m", "fastmask", "env"], 60, log)
        outcomes = {name: run_part(name, setting, end, len(names) == 1, log) for name in names}
        lines = ["", *(f"{name:14} {text}" for name, (_, text) in outcomes.items())]
        print_and_log("\n".join(lines), log)
    return 0 if all(good for good, _ in outcomes.values()) else 1


def run_part(name: str, setting: Setting, end: float, alone: bool, log: IO[str]) -> tuple[bool, str]:
    """Run a part -> whether it succeeded, and its outcome as text."""
    part, left = PARTS[name], end - time.monotonic()
    if not setting.again and (outcome := read_outcome(part, setting))[0]:
        return not outcome[1], f"finished before{outcome[1]}"
    if left < MIN_SECONDS:
        return False, f"not begun: {max(left, 0):.0f} seconds are left; call again"
    start = time.monotonic()
    limit = min(float(setting.environment.get("LIMIT", left if alone else part.limit)), left)
    print_and_log(f"\n== {name}, at most {limit:.0f} seconds, {time.strftime('%H:%M:%S')}", log)
    if name in TOOLS and shutil.which("compute-sanitizer") is None:
        write_section(setting, part, {"skipped": "compute-sanitizer is not installed", "finished": True})
        return True, "skipped: compute-sanitizer is not installed"
    if setting.again and part.section is None:
        (setting.folder / part.file).unlink(missing_ok=True)
    variables: dict[str, str] = {}
    if name in TOOLS:  # one allocation per tensor, or overruns into a neighbor are not seen
        variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    elif part.section is not None and "OMP_NUM_THREADS" not in setting.environment:  # workers share the cores
        variables["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // WORKERS, 1))
    status = tee(part.command(setting, limit), limit, log, variables)
    part.finish(setting, status)
    finished, bad = read_outcome(part, setting)
    text = f"{(time.monotonic() - start) / 60:.1f} min, {'finished' if finished else 'interrupted'}{bad}"
    return finished and not bad and status == 0, text + (f", exit code {status}" if status else "")


def read_outcome(part: Part, setting: Setting) -> tuple[bool, str]:
    """Whether a part's JSON is finished, and its number of failures as text."""
    content = read_json(setting.folder / part.file)
    if part.section is not None:
        content = content.get(part.section, {})
    results = list(content.values()) if part.file == "timeline.json" else [content]  # one per type
    bad = sum(int(r.get("failures", 0) + r.get("errors", 0)) + len(r.get("no row", ())) for r in results)
    finished = len(results) == (len(TYPES) if part.file == "timeline.json" else 1) and all(
        result.get("finished", False) for result in results
    )
    return finished, f", {bad} without success" if bad else ""


def tee(command: Sequence[str], limit: float, log: IO[str], variables: Mapping[str, str] | None = None) -> int | None:
    """Run a command, print and log its output -> its exit code; None if it did not end in time."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(variables or {})
    start, status, interrupted = time.monotonic(), None, False
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        preexec_fn=reset_sigint,
    )
    assert process.stdout is not None
    try:
        with process.stdout, selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                late = time.monotonic() - start - limit
                if late > 0 and not interrupted:
                    process.send_signal(signal.SIGINT)  # pytest and bench then save their results
                    interrupted = True
                if late > GRACE:
                    break
                if selector.select(timeout=0.2):
                    text = os.read(process.stdout.fileno(), 2**16)
                    if not text:
                        status = process.wait(timeout=GRACE)
                        break
                    print_and_log(text.decode(errors="replace"), log, end="")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and its remaining workers
        process.wait()
    return None if interrupted else status


def reset_sigint() -> None:
    """Restore interrupts, which a shell ignores in background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def print_and_log(text: str, log: IO[str], end: str = "\n") -> None:
    for file in (sys.stdout, log):
        print(text, end=end, file=file, flush=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content; empty if it is missing or incomplete."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content


def write_section(setting: Setting, part: Part, content: dict[str, Any]) -> None:
    assert part.section is not None
    path = setting.folder / part.file
    path.write_text(json.dumps(read_json(path) | {part.section: content}, indent=1))


def make_benchmark_part(file: str, pattern: str, limit: float, without: str = "compiled") -> Part:
    """A part of benchmark cases; torchvision compiled takes minutes to compile, and has its own part."""

    def command(setting: Setting, limit: float) -> list[str]:
        only = setting.environment.get("SELECTION", pattern)
        words = [sys.executable, "-m", "fastmask", "bench", "--device", setting.device, "--only", only, "--resume"]
        words += ["--without", without, "--json", str(setting.folder / file), "--limit", str(0.8 * limit)]
        return [*words, *(["--full"] if setting.full else [])]

    return Part(file, limit, command)


TYPES = ("bfloat16", "float32")


def timeline_command(setting: Setting, limit: float) -> list[str]:
    words = [sys.executable, "-m", "fastmask.benchmarks.timeline", str(setting.folder / "timeline.json"), "--no-plot"]
    return [*words, "--device", setting.device, "--rounds", setting.environment.get("ROUNDS", "50"), "--dtype", *TYPES]


def kernels_command(setting: Setting, limit: float) -> list[str]:
    path = str(setting.folder / "kernels.json")
    return [sys.executable, "-m", "fastmask.benchmarks.kernel_times", path, "--device", setting.device]


def selftest_command(setting: Setting, limit: float) -> list[str]:
    path = str(setting.folder / "selftest.json")
    return [sys.executable, "-m", "fastmask", "selftest", "--device", setting.device, "--force", "--json", path]


def make_test_part(name: str, paths: Sequence[str], limit: float, tool: str | None = None, keyword: str = "") -> Part:
    """A part of tests, several at a time where pytest-xdist is installed; under a tool, one after the other."""
    report = Path(tempfile.gettempdir()) / f"fastmask-{os.getpid()}-{name}.xml"

    def command(setting: Setting, limit: float) -> list[str]:
        words = [sys.executable, "-m", "pytest", "-q", "-ra", "--continue-on-collection-errors", f"--junitxml={report}"]
        words += ["-m", "not gpu and not slow and not ptx" if setting.device == "cpu" else "gpu"]
        words += ["--seed", str(random.SystemRandom().randrange(2**31))]
        if keyword or "SELECTION" in setting.environment:
            words += ["-k", setting.environment.get("SELECTION", keyword)]
        if tool is not None:
            words = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *words]
        elif importlib.util.find_spec("xdist") is not None:
            words += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
            if importlib.util.find_spec("pytest_timeout") is not None:  # a kernel that hangs costs only its worker
                words += ["--timeout", "60", "--timeout-method", "thread"]
        return [*words, *(setting.environment["TESTS"].split() if "TESTS" in setting.environment else paths)]

    def finish(setting: Setting, status: int | None) -> None:
        """Save counts, and each failure with its message; ``"finished"`` if every test was run."""
        content: dict[str, Any] = {"finished": status in (0, 1, 9), "status": status, "failed": {}, **gpu_versions()}
        try:
            suite = next(ElementTree.parse(report).iter("testsuite"))
        except (OSError, ElementTree.ParseError):  # pytest itself died: segmentation fault, out of memory, too late
            content |= {"crashed": True, "finished": False}
        else:
            content |= {key: float(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped", "time")}
            for case in suite.iter("testcase"):
                for failure in (part for part in case if part.tag in ("failure", "error")):
                    content["failed"][f"{case.get('classname')}::{case.get('name')}"] = failure.get("message", "")[:500]
        report.unlink(missing_ok=True)
        write_section(setting, PARTS[name], content)

    return Part("tests.json", limit, command, finish, name)


def gpu_versions() -> dict[str, str | None]:
    import torch

    from fastmask.benchmarks.measure import versions

    return {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", **versions()}


# adversarial RoIs and boxes in one dtype, forward and backward: the tools are slow
SMOKE = "(float32 and (meets_the or gradients_meet)) or suppression_chains or bytes_equal"
PARTS: dict[str, Part] = {
    "selftest": Part("selftest.json", 100, selftest_command),
    "tests-kernels": make_test_part("tests-kernels", ["tests/kernels/test_on_gpu.py", "tests/kernels"], 240),
    "timeline": Part("timeline.json", 120, timeline_command),
    "kernels": Part("kernels.json", 60, kernels_command),
    "ops": make_benchmark_part("ops.json", "^(?!Mask R-CNN|training|host)", 240),
    "model": make_benchmark_part("model.json", "^Mask R-CNN", 240),
    "tests": make_test_part("tests", ["tests", "--ignore=tests/kernels"], 240),
    "train": make_benchmark_part("train.json", "^(training|fine-tuning)", 150),
    "memcheck": make_test_part("memcheck", ["tests/kernels"], 240, "memcheck", SMOKE),
    "initcheck": make_test_part("initcheck", ["tests/kernels"], 240, "initcheck", SMOKE),
    # racecheck checks shared memory only, which no kernel here writes explicitly
    "racecheck": make_test_part("racecheck", ["tests/kernels"], 240, "racecheck", SMOKE),
    "compiled": make_benchmark_part("compiled.json", "^Mask R-CNN$", 400, without="best|patched"),
}
ON_REQUEST = ("racecheck", "compiled")  # only if named


if __name__ == "__main__":
    raise SystemExit(main())
