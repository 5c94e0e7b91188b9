"""Pickles of NumPy arrays and plain values, as detectron2 publishes weights; nothing in a file is ever executed.

The names that a pickle of arrays needs stand for classes of this file, which only take down what an array is made of.
Any other name, and any opcode that such pickles do without, is an error.
"""

import collections
import mmap
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # which torch's files before zip archives begin with
DEEPEST = 100  # containers inside each other
KINDS = "?bBhHiIlLqQfde"  # NumPy's codes of numbers that are tensors, too
OPCODES = (  # of containers, numbers, text and bytes; of names and their calls, which are restricted below
    "PROTO FRAME STOP MARK POP POP_MARK DUP EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT NONE NEWTRUE "
    "NEWFALSE STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES BINBYTES8 "
    "SHORT_BINBYTES BYTEARRAY8 GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD"
)


def is_pickle(path: str) -> bool:
    """Whether a file is a bare pickle, neither a zip archive nor torch's format before that."""
    with Path(path).open("rb") as file:
        start = file.read(len(TORCH_MAGIC))
    return start != TORCH_MAGIC and (start[:1] == b"\x80" or (Path(path).suffix == ".pkl" and start[:2] != b"PK"))


def read_pickle(path: str) -> Any:
    """The containers and plain values in a pickle, its arrays and scalars as tensors.

    Raises:
        ValueError: it needs a name that is none of an array's, which the message has, or is broken.
    """
    size = Path(path).stat().st_size
    try:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            # which reads no further than the file is long, whatever length a pickle claims
            content = _Unpickler(pages, encoding="latin1").load()
        return _Conversion(size).convert(content)
    except _ForbiddenError as error:
        raise ValueError(f"{path} must be a checkpoint of arrays and plain values, got {error}") from error
    except Exception as error:  # unpickling raises whatever it trips over
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error


class _ForbiddenError(pickle.UnpicklingError):
    """The pickle needs something that no pickle of arrays does."""


class _Dtype:
    """What a pickle tells of a dtype: the code of its kind and size, and its byte order."""

    def __init__(self, code: str, align: Any = False, copy: Any = True) -> None:
        known = isinstance(code, str) and len(code) <= 2
        self.dtype = np.dtype(code if known else "V1")
        if self.dtype.char not in KINDS:
            raise ValueError(f"arrays must be of numbers, got dtype {code if known else 'of another kind'}")

    def fill(self, state: Any) -> None:
        order = state[1]
        self.dtype = self.dtype.newbyteorder(order) if order in ("<", ">", "|", "=") else self.dtype


class _Array:
    """What a pickle tells of an array."""

    def __init__(self) -> None:
        self.state: tuple[Any, ...] = ()

    def fill(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("arrays must have a state of version, shape, dtype, order and data")
        self.state = state

    def to_tensor(self) -> Tensor:
        _, shape, kind, is_fortran, data = self.state
        data = data.encode("latin1") if isinstance(data, str) else data
        array = np.frombuffer(data, kind.dtype)  # of as many elements as there are bytes for
        array = array.reshape(tuple(shape), order="F" if is_fortran else "C")
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))

    def count_bytes(self) -> int:
        return len(self.state[4]) if self.state else 0


def _make_array(kind: Any, shape: Any, code: Any) -> _Array:
    """In the place of ``_reconstruct``, which would allocate an array of the shape."""
    return _Array()


def _make_from_buffer(data: Any, kind: Any, shape: Any, order: str) -> _Array:
    """In the place of ``_frombuffer``, by which protocol 5 has arrays."""
    array = _Array()
    array.fill((1, shape, kind, order == "F", data))
    return array


def _make_scalar(kind: _Dtype, data: Any) -> Any:
    """In the place of ``scalar``: a number."""
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, kind.dtype, count=1)[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """In the place of ``_codecs.encode``, by which Python 3 wrote bytes in protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise _ForbiddenError("bytes of another encoding than latin1")
    return text.encode("latin1")


def _make_bytes() -> bytes:
    """In the place of ``bytes``, by which Python 3 wrote none at all in protocol 2."""
    return b""


def _make_dict(pairs: Any = ()) -> dict[Any, Any]:
    """In the place of ``OrderedDict``, which Python 2 gave its pairs at once."""
    made: dict[Any, Any] = collections.OrderedDict()
    for key, value in pairs:
        _put(made, key, value)
    return made


def _put(target: Any, key: Any, value: Any) -> None:
    """``target[key] = value``; the hash of a key may be that of a million tuples inside each other."""
    if not isinstance(target, dict) or not isinstance(key, str | int):
        raise _ForbiddenError(f"a key of {type(key).__name__} in {type(target).__name__}")
    target[key] = value


CORE = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1's module and 2's
NAMES: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _make_array for module in CORE},
    **{(module, "scalar"): _make_scalar for module in CORE},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _make_from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): _make_bytes for module in ("builtins", "__builtin__")},
    ("collections", "OrderedDict"): _make_dict,
}
CALLABLE = (_make_array, _make_from_buffer, _make_scalar, _make_dict, _make_bytes, _Dtype, _encode)


def _forbid(code: str) -> Callable[[Any], NoReturn]:
    def load(self: Any) -> NoReturn:
        raise _ForbiddenError(f"opcode {code}")

    return load


BASE: Any = pickle._Unpickler  # in Python: the other one allocates as much as a file tells it to


class _Unpickler(BASE):  # type: ignore[misc]
    """Unpickles containers, plain values, and what arrays are made of."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise _ForbiddenError(ascii(f"{module}.{name}"[:200]).strip("'"))
        return NAMES[module, name]

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not any(function is known for known in CALLABLE):
            raise _ForbiddenError(f"a call of {type(function).__name__}")
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, _Array | _Dtype):
            value.fill(state)
        elif type(value) is not collections.OrderedDict:  # whose state is what modules note of themselves
            raise _ForbiddenError(f"a state of {type(value).__name__}")

    def load_bytearray8(self) -> None:
        self.load_binbytes8()  # which makes no room before it reads

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], key, value)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(self.stack[-1], key, value)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append(_make_dict(zip(items[::2], items[1::2], strict=True)))


_Unpickler.dispatch = {
    opcode[0]: getattr(_Unpickler, f"load_{name.lower()}", BASE.dispatch[opcode[0]])
    if name in OPCODES.split()
    else _forbid(name)
    for name, opcode in vars(pickle).items()
    if isinstance(opcode, bytes) and len(opcode) == 1 and opcode[0] in BASE.dispatch
}


class _Conversion:
    """Arrays in containers as tensors, each once.

    Args:
        size: of the file, which all arrays together must not exceed.
    """

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0
        self.done: dict[int, Any] = {}  # by the id of what was unpickled
        self.enclosing: set[int] = set()

    def convert(self, value: Any) -> Any:
        """A value with all that it holds."""
        if id(value) in self.done:
            return self.done[id(value)]
        if isinstance(value, _Array):
            self.used += value.count_bytes()
            if self.used > self.size:
                raise ValueError(f"arrays must have no more bytes than the file's {self.size}, got {self.used}")
            converted: Any = value.to_tensor()
        elif isinstance(value, dict | list | tuple):
            if id(value) in self.enclosing or len(self.enclosing) == DEEPEST:
                raise ValueError(f"containers must not hold themselves, nor {DEEPEST} inside each other")
            self.enclosing.add(id(value))
            if isinstance(value, dict):
                converted = {key: self.convert(each) for key, each in value.items()}
            else:
                converted = [self.convert(each) for each in value]
            self.enclosing.remove(id(value))
        elif value is None or isinstance(value, str | bytes | int | float):
            return value
        else:
            raise _ForbiddenError(f"a value of {type(value).__name__.strip('_')}")
        self.done[id(value)] = converted
        return converted
