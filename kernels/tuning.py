"""Tuned values: those that ``fastmask tune`` found fastest on this GPU, for launchers and Predictor.

There is one JSON file for each name of a device, version of Triton and version of fastmask, in
``$XDG_CACHE_HOME/fastmask/tuning`` (``~/.cache/fastmask/tuning`` without that variable). ``FASTMASK_TUNING=FILE`` takes
another file, ``FASTMASK_TUNING=off`` none. A file is read when its device is first used, once in a process, without a
host sync, and is never written here. After that a lookup costs two dictionary accesses, 0.2 us.
A broken file, or another device's, is named in one warning and ignored, and so is a value that is no choice.
"""

import contextlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from fastmask._version import __version__
from fastmask.kernels.knobs import check_value, name_at
from fastmask.kernels.launch import HAS_TRITON

T = TypeVar("T")
Table = Mapping[str, Any]  # by the names of knobs

FORMAT = 1  # of the file; another one is not read
_NOTHING: Table = MappingProxyType({})
_tables: dict[torch.device, Table] = {}
_files: dict[tuple[Path, str], Table] = {}  # what was read, by file and the device's name
_lock = threading.Lock()


def tuned_value(name: str, default: T, device: torch.device) -> T:
    """A knob's value on a device, or its default."""
    table = _tables.get(device)
    if table is None:
        table = _resolve(device)
    return table.get(name, default)  # type: ignore[no-any-return]


def tuned_value_at(
    name: str, default: T, device: torch.device, size: Sequence[int] | str, batch: int, dtype: torch.dtype
) -> T:
    """A Predictor's setting on a device at one shape, or its default, which "exact" sizes always have."""
    return default if isinstance(size, str) else tuned_value(name_at(name, size, batch, dtype), default, device)


def values_on(device: torch.device) -> dict[str, Any]:
    """Values in use on a device instead of the defaults, by the names of knobs."""
    return dict(_resolve(device))


def _resolve(device: torch.device) -> Table:
    """The table of a device, read at its first use and constant from then on."""
    with _lock:
        if device not in _tables:
            path = find_file(device)
            _tables[device] = _NOTHING if path is None else _read_once(path, name_of(device))
        return _tables[device]


def _read_once(path: Path, name: str) -> Table:
    if (path, name) not in _files:
        values: Table = {}
        problems: list[str] = []
        try:
            if path.exists() or os.environ.get("FASTMASK_TUNING"):
                values, problems = read_values(path, name)
        except (OSError, ValueError) as error:
            problems = [f"{error}; the file is ignored"]
        _files[path, name] = MappingProxyType(dict(values))
        if problems:
            warnings.warn(f"tuning file {path}: {'; '.join(problems)}", stacklevel=5)  # where a launcher asked
    return _files[path, name]


def find_file(device: torch.device) -> Path | None:
    """The file to read for a device, whether or not it exists; None where none is read."""
    setting = os.environ.get("FASTMASK_TUNING", "")
    if setting == "off":
        return None
    if setting:
        return Path(setting)
    return default_file(device) if device.type == "cuda" else None


def default_file(device: torch.device) -> Path:
    """Path of a device's file in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    facts = facts_of(name_of(device))
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", facts["device"]).strip("-")
    return Path(cache, "fastmask", "tuning", f"{slug}_triton-{facts['triton']}_fastmask-{facts['fastmask']}.json")


def file_to_write(device: torch.device) -> Path:
    """Path to which ``fastmask tune`` writes a device's values: where they will be read, unless reading is off."""
    path = find_file(device)
    return default_file(device) if path is None else path


def with_index(device: torch.device) -> torch.device:
    """The device with its index, as tensors on it have it."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def name_of(device: torch.device) -> str:
    """Name of a GPU, which torch keeps; else the type of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def facts_of(name: str) -> dict[str, str]:
    """Device and versions that a file must have been measured with to be used here."""
    version = "none"
    if HAS_TRITON:
        import triton

        version = triton.__version__
    return {"device": name, "triton": version, "fastmask": __version__}


def read_tuning(path: Path, name: str) -> dict[str, Any]:
    """Read and check a tuning file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no tuning file, or another device's or version's.
    """
    try:
        tuning = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})") from None
    if not isinstance(tuning, dict) or not isinstance(tuning.get("values"), dict):
        raise ValueError("it is no tuning file: an object with values")
    for key, wanted in {"format": FORMAT, **facts_of(name)}.items():
        if tuning.get(key) != wanted:
            raise ValueError(f"{key} must be {wanted!r}, got {tuning.get(key)!r}")
    return tuning


def read_values(path: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    """Read the valid values of a file, and messages about the others; raises as :func:`read_tuning`."""
    values, problems = {}, []
    for knob, value in read_tuning(path, name)["values"].items():
        try:
            values[knob] = check_value(knob, value)
        except ValueError as error:
            problems.append(str(error))
    return values, problems


@contextlib.contextmanager
def override(device: torch.device, values: Mapping[str, Any]) -> Iterator[None]:
    """Use these values on a device inside the block, instead of a file's; for one thread."""
    before = _tables.get(device)
    _tables[device] = MappingProxyType(dict(values))
    try:
        yield
    finally:
        if before is None:
            del _tables[device]
        else:
            _tables[device] = before


def describe_all() -> list[str]:
    """Describe the values in use on each GPU, or on the CPU where there is none, and their file, for a bug report."""
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [f"{device}: {_describe(device)}" for device in devices or [torch.device("cpu")]]


def _describe(device: torch.device) -> str:
    path = find_file(device)
    if path is None:
        off = os.environ.get("FASTMASK_TUNING") == "off"
        return f"defaults: {'FASTMASK_TUNING is off' if off else 'only GPUs are tuned'}"
    values = values_on(device)
    if values:
        return f"{', '.join(f'{name} {value}' for name, value in values.items())}, from {path}"
    return f"defaults: {'no values' if path.exists() else 'no file'} at {path}"
