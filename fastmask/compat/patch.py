"""A reversible patch that runs existing torchvision code on fastmask's ops.

It works in two places. In the dispatcher it overrides the kernels of torchvision's ops and, as its autograd formulas
stay, those of their backwards; its autocast kernels, which would upcast the features first; and its shape functions,
which would refuse half features with float32 boxes. In Python it replaces private functions of torchvision around the
ops. Both act only on tensors of the patched devices, and never while a program is traced or exported, which would then
hold our ops.

A kernel that has been registered in the dispatcher stays there and checks at each call whether a patch is active:
removing it while another thread is inside an op would pull its code from under it.
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

from fastmask.compat import torchvision_ops as impl

Function = Callable[..., Any]

_active: list["Patch"] = []
_active_keys: frozenset[str] = frozenset()  # the dispatch keys of all active patches
_libraries: dict[str, torch.library.Library] = {}  # by dispatch key; they hold our kernels in the dispatcher
_replaced: list[tuple[ModuleType, str, Function]] = []  # (module, name, torchvision's own)
_lock = threading.RLock()


class Patch(contextlib.AbstractContextManager["Patch"]):
    """The effect of one call of :func:`patch_torchvision`; it ends with the ``with`` block or with :meth:`undo`."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys

    def __enter__(self) -> "Patch":
        self.apply()
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def apply(self) -> None:
        """Patch, or patch again; no effect while the patch is active."""
        with _lock:
            for key in self.keys:
                _register(key)
            if not _active:
                _replace_functions()
            if self not in _active:
                _active.append(self)
            _update_keys()

    def undo(self) -> None:
        """Restore torchvision, but for the keys of other active patches; no effect if already undone."""
        with _lock:
            if self in _active:
                _active.remove(self)
            _update_keys()
            while _replaced and not _active:
                setattr(*_replaced.pop())


def _update_keys() -> None:
    global _active_keys
    _active_keys = frozenset(key for patch in _active for key in patch.keys)


def patch_torchvision(keys: Iterable[str] = ("CUDA",)) -> Patch:
    """Run torchvision's detection ops on fastmask's, from now on or within a ``with`` block.

    The patch covers nms, batched_nms, roi_align, roi_pool, MultiScaleRoIAlign and the detection models' mask pasting,
    also in existing models, forward and backward. Results are fastmask's: compat/README.md lists the differences.
    torchvision's own ops run while TorchScript traces or a program is exported, and where fastmask has no equivalent,
    such as for a user's level mapper. Processes that are spawned, not forked, have to patch for themselves.

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
        import torchvision.models.detection  # noqa: F401  # its modules hold the functions to replace
    except ImportError as error:
        raise ImportError("patch_torchvision needs torchvision: pip install torchvision") from error
    patch.apply()
    return patch


def unpatch_torchvision() -> None:
    """Undo all active patches of torchvision."""
    for patch in list(_active):
        patch.undo()


def _register(key: str) -> None:
    """Register our kernels for one dispatch key; without an active patch they forward to torchvision's."""
    if key not in _libraries:
        _libraries[key] = _override(key, impl.KERNELS, key)
        _libraries[f"Autocast{key}"] = _override(f"Autocast{key}", _autocast_kernels(key.lower()), key)
    if "Meta" not in _libraries:
        from torchvision import _meta_registrations as shapes

        _libraries["Meta"] = library = torch.library.Library("torchvision", "IMPL")
        for name, ours, original in (
            ("roi_align", impl.roi_align_shape, shapes.meta_roi_align),
            ("_roi_align_backward", impl.roi_align_backward_shape, shapes.meta_roi_align_backward),
            ("roi_pool", impl.roi_pool_shape, shapes.meta_roi_pool),
            ("_roi_pool_backward", impl.roi_pool_backward_shape, shapes.meta_roi_pool_backward),
        ):
            # fake tensors call these without a keyset
            library.impl(name, _switch(ours, original, None), "Meta", allow_override=True)


def _override(key: str, kernels: dict[str, Function], device: str) -> torch.library.Library:
    """Override torchvision's kernels on a dispatch key, where it has them; see :func:`_switch`."""
    library = torch.library.Library("torchvision", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # about overriding, which is intended
        for name, ours in kernels.items():
            qualified = f"torchvision::{name}"
            if torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key):
                kernel = _switch(_drop_keyset(ours), torch.library.get_kernel(qualified, key).call_boxed, device)
                library.impl(name, kernel, key, with_keyset=True, allow_override=True)
    return library


def _drop_keyset(ours: Function) -> Function:
    return lambda keyset, *args: ours(*args)


def _switch(ours: Function, original: Function, device: str | None) -> Function:
    """A kernel that calls ours while that device's key (None: any) is patched, or else the original."""

    def kernel(*args: Any) -> Any:
        active = device in _active_keys if device else bool(_active_keys)
        return ours(*args) if active and not _is_tracing() else original(*args)

    kept: Function = torch.compiler.disable(kernel)  # a compiled program calls it and does not trace it
    return kept


def _is_tracing() -> bool:
    """Whether the current call becomes part of a TorchScript or exported program."""
    return bool(torch._C._get_tracing_state()) or torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()


def _autocast_kernels(device_type: str) -> dict[str, Function]:
    """Ops that keep the dtypes of their inputs: features may be half, boxes stay float32."""

    def of(name: str) -> Function:
        def run(*args: Any) -> Any:
            with torch.autocast(device_type, enabled=False):
                return getattr(torch.ops.torchvision, name)(*args)

        return run

    return {name: of(name) for name in ("nms", "roi_align", "roi_pool")}


def _replace_functions() -> None:
    """Replace the private functions that torchvision's public names call; the public names stay."""
    from torchvision.models.detection import roi_heads, transform
    from torchvision.ops import boxes, poolers

    align = sys.modules["torchvision.ops.roi_align"]  # torchvision.ops.roi_align is the function
    for modules, name, ours, fits in (
        ([boxes], "_batched_nms_coordinate_trick", impl.batched_nms, impl.has_boxes),
        ([boxes], "_batched_nms_vanilla", impl.batched_nms, impl.has_boxes),
        ([align], "_roi_align", impl.roi_align, impl.fits_any),  # deterministic mode calls it instead of the op
        ([poolers], "_multiscale_roi_align", impl.multiscale_roi_align, impl.has_usual_levels),
        ([roi_heads, transform], "paste_masks_in_image", impl.paste_masks_in_image, impl.can_paste),
        ([roi_heads], "heatmaps_to_keypoints", impl.heatmaps_to_keypoints, impl.can_decode),
    ):
        routed = _route(getattr(modules[0], name), ours, fits)
        for module in modules:
            _replaced.append((module, name, getattr(module, name)))
            setattr(module, name, routed)


def _route(original: Function, ours: Function, fits: Function) -> Function:
    """Route a function of torchvision to ours for tensors of a patched device, if the arguments fit."""

    @functools.wraps(original)
    def routed(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        tensor = first[0] if isinstance(first, list) and first else first
        active = (
            isinstance(tensor, Tensor)
            and tensor.device.type.upper() in _active_keys
            and not tensor.is_quantized
            and not _is_tracing()
            and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
            and fits(*args, **kwargs)
        )
        return ours(*args, **kwargs) if active else original(*args, **kwargs)

    routed.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]  # TorchScript takes torchvision's
    return routed
