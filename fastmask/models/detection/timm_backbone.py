"""Backbones of timm's with a feature pyramid; not in torchvision.

timm is an extra; nothing here imports it before a model is built.
"""

import contextlib
import copy
import importlib
import logging
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastmask.models.checkpoint import Checkpoint
from fastmask.models.converters.efficientnet_lite import is_package_file, rename_to_timm
from fastmask.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from fastmask.ops.misc import FrozenBatchNorm2d

STRIDES = (4, 8, 16, 32)
DRY_RUN = (64, 96)  # the size of an image on which a backbone is tried


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """A frozen norm with the activation that timm's norms bring along, under the same keys.

    Args:
        num_features: channels C of the input [N, C, H, W].
        eps: added to the variance.
        drop: runs between the norm and the activation.
        act: the activation.
    """

    def __init__(self, num_features: int, eps: float, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(num_features, eps)
        self.drop, self.act = drop, act

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.drop(super().forward(x)))
        return result


def import_timm() -> Any:
    """timm; ImportError that names the extra if it is not installed."""
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise ImportError("this model needs timm: pip install 'fastmask-rcnn[timm]'") from error
    return timm


class TimmBackboneWithFPN(nn.Module):
    """A backbone of timm's and a feature pyramid on its maps of strides 4 to 32.

    Args:
        body: a ``features_only`` model of timm's.
        fpn_channels: channels of every level of the pyramid.

    Attributes:
        body: that model.
        fpn: the pyramid.
        indices: which of the body's maps the pyramid takes, finest first.
        strides: image pixels per feature pixel of each of these, by name.
        out_channels, fpn_channels: channels of every level.

    Raises:
        ValueError: the body has no such maps, or takes images of one size alone.
    """

    def __init__(self, body: Any, fpn_channels: int = 256) -> None:
        super().__init__()
        name = type(body).__name__ if not getattr(body, "pretrained_cfg", None) else body.pretrained_cfg["architecture"]
        reductions = list(body.feature_info.reduction())
        if not set(STRIDES) <= set(reductions):
            raise ValueError(f"backbone must have feature maps of strides {STRIDES}, got {name} with {reductions}")
        self.indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
        self.body = body
        self.first_use = _find_first_use(body, self.indices, name)
        channels = [body.feature_info.channels()[index] for index in self.indices]
        self.fpn = FeaturePyramidNetwork(channels, fpn_channels, LastLevelMaxPool())
        self.out_channels = self.fpn_channels = fpn_channels
        self.strides = {str(i): stride for i, stride in enumerate(STRIDES)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] -> the pyramid by name, finest first."""
        maps = self.body(x)
        pyramid: dict[str, Tensor] = self.fpn(
            OrderedDict((str(i), maps[index]) for i, index in enumerate(self.indices))
        )
        return pyramid

    def freeze(self, trainable_layers: int) -> None:
        """Freeze all parameters of the body but those of its last stages.

        Args:
            trainable_layers: how many of the stages of strides 32, 16, 8, 4 and 2 are trained, in this order; a
                parameter is of the finest of these maps that depends on it.
        """
        for name, parameter in self.body.named_parameters():
            parameter.requires_grad_(self.first_use[name] >= 5 - trainable_layers)

    def list_foldable(self) -> Iterator[tuple[str, str]]:
        """Names of each convolution in the body and the norm that alone reads it, where torch.fx follows the body."""
        modules = dict(self.named_modules())
        try:
            nodes = list(_Tracer().trace(self.body).nodes)
        except Exception:  # whatever its forward does with a proxy
            return
        called = [node.target for node in nodes if node.op == "call_module"]
        for node in nodes:
            if node.op != "call_module" or not isinstance(modules[f"body.{node.target}"], _NORMS):
                continue
            source = node.args[0]
            if source.op == "call_module" and len(source.users) == 1 and called.count(source.target) == 1:
                yield f"body.{source.target}", f"body.{node.target}"


_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d)


class _Tracer(fx.Tracer):
    """torch.fx's, to which layers of timm's are leaves, too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | FrozenBatchNorm2d | nn.BatchNorm2d) or super().is_leaf_module(
            m, module_qualified_name
        )


def freeze_norms(module: nn.Module) -> None:
    """Replace the batch norms in a module by frozen ones, in place; timm's keep their activation."""
    for parent in list(module.modules()):
        for name, norm in parent.named_children():
            if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
                continue
            children = dict(norm.named_children())
            if children.keys() == {"drop", "act"}:
                frozen: FrozenBatchNorm2d = FrozenBatchNormAct2d(norm.num_features, norm.eps, **children)
            elif type(norm) is nn.BatchNorm2d:
                frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
            else:
                continue
            state = {key: value for key, value in norm.state_dict().items() if key != "num_batches_tracked"}
            frozen.to(norm.running_mean).load_state_dict(state, strict=False)  # a norm without weights scales by one
            setattr(parent, name, frozen.train(norm.training))


def split_activations(module: nn.Module) -> None:
    """Replace norms that bring their activation along by a norm and an activation, in place; keys change."""
    for parent in list(module.modules()):
        for name, norm in parent.named_children():
            if type(norm) is FrozenBatchNormAct2d:
                plain = FrozenBatchNorm2d(norm.weight.shape[0], norm.eps).to(norm.weight)
                plain.load_state_dict({key: value for key, value in norm.state_dict().items() if "." not in key})
                setattr(parent, name, nn.Sequential(plain, norm.drop, norm.act).train(norm.training))


def padded_convolutions() -> tuple[type[nn.Conv2d], ...]:
    """timm's convolutions that pad as TensorFlow does, by the size of their input."""
    return (importlib.import_module("timm.layers").Conv2dSame,)


def timm_fpn_backbone(
    name: str,
    *,
    pretrained: bool = False,
    weights_backbone: str | os.PathLike[str] | None = None,
    frozen_norms: bool = True,
    trainable_layers: int = 3,
    fpn_channels: int = 256,
    in_channels: int = 3,
) -> TimmBackboneWithFPN:
    """A backbone of timm's by name with a pyramid, its first stages frozen.

    Args:
        name: a model of timm's with its tag, if any: "resnet18", "tf_efficientnet_lite0.in1k".
        pretrained: timm's own weights, which timm downloads.
        weights_backbone: a file of the whole classifier in timm's keys, see :class:`fastmask.models.Checkpoint`.
        frozen_norms: batch norms keep their statistics and affine parameters.
        trainable_layers: how many stages are trained, see :meth:`TimmBackboneWithFPN.freeze`.
        fpn_channels: channels of every level of the pyramid.
        in_channels: channels of the images.

    Raises:
        ImportError: timm is not installed.
        ConnectionError: timm's weights cannot be downloaded.
        ValueError: there is no such backbone, it does not fit, or the file is of another one.
    """
    timm = import_timm()
    if pretrained and weights_backbone is not None:
        raise ValueError(f"pretrained must be False with weights_backbone, got {os.fspath(weights_backbone)}")
    options: dict[str, Any] = {"in_chans": in_channels, "pretrained": pretrained}
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.partition('.')[0]}*")[:5])
        raise ValueError(f"backbone must be a model of timm's{f', such as {near}' if near else ''}, got {name!r}")
    if weights_backbone is not None:
        state = _read_classifier(timm, name, weights_backbone, in_channels)
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    try:
        with _without_warnings(file_is_checked=weights_backbone is not None):
            body = timm.create_model(name, features_only=True, **options)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError, OSError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if pretrained:
            raise ConnectionError(
                f"timm's weights of {name} cannot be had ({reason}): download them elsewhere, for weights_backbone"
            ) from error
        raise ValueError(f"backbone must have feature maps (features_only), got {name}: {reason}") from error
    if frozen_norms:
        freeze_norms(body)
    backbone = TimmBackboneWithFPN(body, fpn_channels)
    backbone.freeze(trainable_layers)
    return backbone


@contextlib.contextmanager
def _without_warnings(file_is_checked: bool) -> Iterator[None]:
    """Without timm's warning that a classifier has more layers than a backbone, where no key is missing."""
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.setLevel(logging.ERROR if file_is_checked else level)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_classifier(timm: Any, name: str, path: str | os.PathLike[str], in_channels: int) -> dict[str, Tensor]:
    """The state of a whole classifier without its last layer; ValueError if the file is of another model."""
    state = Checkpoint(path).get_state_dict()
    state = rename_to_timm(state) if is_package_file(state) else state
    model = timm.create_model(name, num_classes=0, in_chans=in_channels)
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    own = model.state_dict()
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    missing = [key for key in own if key not in state and key not in optional]
    unexpected = [key for key in state if key not in own and not key.startswith(heads)]
    for what, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            raise ValueError(
                f"{os.fspath(path)} must have the keys of timm's {name}, got {len(keys)} {what}: {keys[:3]}"
            )
    for key, value in own.items():
        if key in state and state[key].shape != value.shape:
            raise ValueError(
                f"{os.fspath(path)} must have the shapes of timm's {name}, got {list(state[key].shape)} for {key}, "
                f"which has {list(value.shape)}"
            )
    return {key: value for key, value in state.items() if key in own}


def _find_first_use(body: nn.Module, indices: list[int], name: str) -> dict[str, int]:
    """Each parameter's stage: 0 before the map of stride 4, to 4 of the map of stride 32, by a run on meta tensors."""
    probe = copy.deepcopy(body).to("meta").eval().requires_grad_(True)
    reductions = probe.feature_info.reduction()  # type: ignore[operator, union-attr]
    channels = next(p.shape[1] for p in probe.parameters() if p.ndim == 4)
    try:
        with warnings.catch_warnings(action="ignore"):
            maps = probe(torch.zeros(1, channels, *DRY_RUN, device="meta"))
    except Exception as error:  # each backbone has its own kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"backbone must take images of any size, got {name}: {reason}") from error
    for index, stride in zip(indices, STRIDES, strict=True):
        expected = tuple(side // stride for side in DRY_RUN)
        if tuple(maps[index].shape[2:]) != expected:
            raise ValueError(
                f"backbone must have a map [C, {expected[0]}, {expected[1]}] of stride {stride} of an image of "
                f"{DRY_RUN}, got {name} with {list(maps[index].shape[1:])}"
            )
    names, parameters = zip(*probe.named_parameters(), strict=True)
    first_use = dict.fromkeys(names, len(STRIDES))
    pending = set(names)
    stages: list[list[int]] = [[index for index, reduction in enumerate(reductions) if reduction < STRIDES[0]]]
    for stage, used in enumerate(stages + [[index] for index in indices]):
        if not used:
            continue
        sums = [maps[index].sum() for index in used]
        gradients = torch.autograd.grad(sums, parameters, retain_graph=True, allow_unused=True)
        for key, gradient in zip(names, gradients, strict=True):
            if gradient is not None and key in pending:
                first_use[key] = stage
                pending.discard(key)
    return first_use
