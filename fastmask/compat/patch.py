"""Run existing torchvision code on fastmask's ops, and on its own again.

Two ways lead there. Through the dispatcher: the kernels of torchvision's ops and, as its autograd formulas stay, those
of their backwards; its autocast kernels, which would upcast the features first; and its shape functions, which would
refuse half features with full boxes. And in Python, beneath the public names: what torchvision does there around its
ops. Both only for tensors of the patched devices, and never while a program is traced or exported, which would then
hold our ops.

A kernel that has been put into the dispatcher stays there and asks at each call whether it is wanted: taking it away
while another thread is inside an op would pull its code from under it.
"""

import contextlib
import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastmask.compat import torchvision_ops as equals

Function = Callable[..., Any]

_active: list["Patch"] = []
_wanted: frozenset[str] = frozenset()  # the dispatch keys of all active patches
_libraries: dict[str, torch.library.Library] = {}  # by dispatch key: what holds our kernels in the dispatcher
_replaced: list[tuple[ModuleType, str, Function]] = []  # (module, name, torchvision's own)
_lock = threading.RLock()


class Patch(contextlib.AbstractContextManager["Patch"]):
    """What one call of :func:`patch_torchvision` has patched; leaving it as a context undoes that."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys

    def __enter__(self) -> "Patch":
        self.apply()
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def apply(self) -> None:
        """Patch, or patch again. Harmless when it is patched."""
        with _lock:
            for key in self.keys:
                _register(key)
            if not _active:
                _replace_functions()
            if self not in _active:
                _active.append(self)
            _want()

    def undo(self) -> None:
        """Give torchvision back its own, but for what another patch wants. Harmless when it has been done."""
        with _lock:
            if self in _active:
                _active.remove(self)
            _want()
            while _replaced and not _active:
                setattr(*_replaced.pop())


def _want() -> None:
    global _wanted
    _wanted = frozenset(key for patch in _active for key in patch.keys)


def patch_torchvision(keys: Iterable[str] = ("CUDA",)) -> Patch:
    """Let torchvision's detection ops run on fastmask's, from now on or within a ``with`` block.

    nms, batched_nms, roi_align, roi_pool, MultiScaleRoIAlign and the detection models' pasting, in models that exist
    already too, forward and backward. Answers are fastmask's: see README, "Where we differ". Not while TorchScript
    traces or a program is exported, and for what fastmask has no equal of, such as a level mapper of one's own.
    Processes that are spawned, not forked, have to patch for themselves.

    Args:
        keys: dispatch keys (device types in capitals) to patch.

    Returns:
        Patch: ``with patch_torchvision(): ...`` ends with the block, ``patch.undo()`` at once.

    Raises:
        ImportError: torchvision is not installed.
        ValueError: a key is not the name of a device type in capitals.
    """
    if isinstance(keys, str):
        raise ValueError(f"keys must be a sequence of dispatch keys such as ('CUDA',), got {keys!r}")
    patch = Patch(tuple(dict.fromkeys(keys)))
    for key in patch.keys:
        if key not in ("CUDA", "CPU", "MPS", "XPU"):
            raise ValueError(f"keys must be of CUDA, CPU, MPS and XPU, got {key!r}")
    try:
        import torchvision.models.detection  # noqa: F401  # its modules hold what is replaced
    except ImportError as error:
        raise ImportError("patch_torchvision needs torchvision: pip install torchvision") from error
    patch.apply()
    return patch


def unpatch_torchvision() -> None:
    """Give torchvision back its own altogether, whatever has patched it."""
    for patch in list(_active):
        patch.undo()


def _register(key: str) -> None:
    """Our kernels for one dispatch key, in front of torchvision's, which they forward to when they are not wanted."""
    if key not in _libraries:
        _libraries[key] = _in_front(key, equals.KERNELS, key)
        _libraries[f"Autocast{key}"] = _in_front(f"Autocast{key}", _without_autocast(key.lower()), key)
    if "Meta" not in _libraries:
        from torchvision import _meta_registrations as shapes

        _libraries["Meta"] = library = torch.library.Library("torchvision", "IMPL")
        for name, ours, original in (
            ("roi_align", equals.roi_align_shape, shapes.meta_roi_align),
            ("_roi_align_backward", equals.roi_align_backward_shape, shapes.meta_roi_align_backward),
        ):
            # fake tensors call these without a keyset
            library.impl(name, _either(ours, original, None), "Meta", allow_override=True)


def _in_front(key: str, kernels: dict[str, Function], device: str) -> torch.library.Library:
    """Register kernels on a dispatch key, wherever torchvision has one there; see :func:`_either`."""
    library = torch.library.Library("torchvision", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that one is overridden: it is meant
        for name, ours in kernels.items():
            qualified = f"torchvision::{name}"
            if torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key):
                kernel = _either(_without_keyset(ours), torch.library.get_kernel(qualified, key).call_boxed, device)
                library.impl(name, kernel, key, with_keyset=True, allow_override=True)
    return library


def _without_keyset(ours: Function) -> Function:
    return lambda keyset, *args: ours(*args)


def _either(ours: Function, original: Function, device: str | None) -> Function:
    """A kernel that is ours while that device's key (None: any) is patched, else what was there before."""

    def kernel(*args: Any) -> Any:
        wanted = device in _wanted if device else bool(_wanted)
        return ours(*args) if wanted and not _in_a_program() else original(*args)

    kept: Function = torch.compiler.disable(kernel)  # a compiled program calls it, it is no part of that
    return kept


def _in_a_program() -> bool:
    """Whether what is called now becomes part of a TorchScript or exported program."""
    return bool(torch._C._get_tracing_state()) or torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()


def _without_autocast(device_type: str) -> dict[str, Function]:
    """Ops on their inputs as they are: features may be half, boxes stay float32."""

    def of(name: str) -> Function:
        def run(*args: Any) -> Any:
            with torch.autocast(device_type, enabled=False):
                return getattr(torch.ops.torchvision, name)(*args)

        return run

    return {name: of(name) for name in ("nms", "roi_align", "roi_pool")}


def _replace_functions() -> None:
    """Put our functions in the place of those beneath torchvision's public names, which stay what they are."""
    from torchvision.models.detection import roi_heads, transform
    from torchvision.ops import boxes, poolers

    align = sys.modules["torchvision.ops.roi_align"]  # of the package's name is its function
    for modules, name, ours, fits in (
        ([boxes], "_batched_nms_coordinate_trick", equals.batched_nms, equals.has_boxes),
        ([boxes], "_batched_nms_vanilla", equals.batched_nms, equals.has_boxes),
        ([align], "_roi_align", equals.roi_align, equals.anything),  # which deterministic mode takes instead of the op
        ([poolers], "_multiscale_roi_align", equals.multiscale_roi_align, equals.has_usual_levels),
        ([roi_heads, transform], "paste_masks_in_image", equals.paste_masks_in_image, equals.can_paste),
    ):
        routed = _route(getattr(modules[0], name), ours, fits)
        for module in modules:
            _replaced.append((module, name, getattr(module, name)))
            setattr(module, name, routed)


def _route(original: Function, ours: Function, fits: Function) -> Function:
    """A function of torchvision's that goes to ours for tensors of a patched device, if the arguments fit."""

    @functools.wraps(original)
    def routed(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        tensor = first[0] if isinstance(first, list) and first else first
        wanted = (
            isinstance(tensor, Tensor)
            and tensor.device.type.upper() in _wanted
            and not tensor.is_quantized
            and not _in_a_program()
            and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
            and fits(*args, **kwargs)
        )
        return ours(*args, **kwargs) if wanted else original(*args, **kwargs)

    routed.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]  # TorchScript takes torchvision's
    return routed
