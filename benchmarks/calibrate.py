"""Calibrate random weights so that a model detects as a trained one does, where no trained weights can be had."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

RPN_LOGIT = 8.0  # maximum: no sigmoid may reach 1.0, since tied scores make torchvision's own choice arbitrary
CLASS_LOGIT = 3.0  # their standard deviation: some classes stand out, and no softmax reaches 1.0


def calibrate(model: Any, images: Sequence[Tensor]) -> None:
    """Calibrate an R-CNN: norms have the statistics of images, features a standard deviation of about 1, predictors
    decide, and masks fill most of their boxes.

    Args:
        model: torchvision's or fastmask's, in eval mode, with random weights, which are changed in place.
        images: [3, h, w] in [0, 1], as the model takes them.
    """
    factors: dict[Any, list[float]] = {}  # of each layer's weights, call by call

    def measure(module: Any, inputs: tuple[Tensor], _: Tensor) -> Tensor | None:
        if inputs[0].numel() == 0:
            return None
        variance, average = torch.var_mean(inputs[0], (0, 2, 3))
        module.running_mean.copy_(average)
        module.running_var.copy_(variance)
        shape = (1, -1, 1, 1)
        normed: Tensor = (inputs[0] - average.view(shape)) / (variance.view(shape) + module.eps).sqrt()
        return normed

    def scale(layer: nn.Module, factor: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Multiply the layer's output in this pass, and record the factor for its weights."""

        def scale_output(module: nn.Module, _: tuple[Tensor], output: Tensor) -> Tensor:
            factors.setdefault(module, []).append(factor(output).item())
            return output * factors[module][-1]

        return layer.register_forward_hook(scale_output)

    def fill(module: Any, _: tuple[Tensor], logits: Tensor) -> None:
        if logits.numel() > 0:
            module.bias += logits.std()

    hooks = [module.register_forward_hook(measure) for module in model.modules() if hasattr(module, "running_var")]
    pyramid = getattr(model.backbone, "fpn", None)  # a C4 model has none: its map is what norms give
    hooks += [scale(block[0], lambda x: 1 / x.std()) for block in getattr(pyramid, "layer_blocks", ())]
    hooks.append(scale(model.rpn.head.cls_logits, lambda x: RPN_LOGIT / x.abs().max()))
    hooks.append(scale(model.roi_heads.box_predictor.cls_score, lambda x: CLASS_LOGIT / x.std()))
    if model.roi_heads.has_mask():
        hooks.append(model.roi_heads.mask_predictor.mask_fcn_logits.register_forward_hook(fill))
    with torch.no_grad():
        model(list(images))
        for hook in hooks:
            hook.remove()
        for module, values in factors.items():
            module.weight *= min(values)
            if module.bias is not None:
                module.bias *= min(values)
