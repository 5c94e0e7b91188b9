"""Models of matterport's Mask_RCNN, from its files of weights, such as ``mask_rcnn_coco.h5``."""

import os
from typing import Any

from fastmask.models.converters._matterport_file import is_matterport as is_matterport
from fastmask.models.detection.matterport import MatterportMaskRCNN, maskrcnn_matterport


def build_matterport(path: str | os.PathLike[str], **options: Any) -> MatterportMaskRCNN:
    """A model of a .h5 file's weights, in eval mode, its depth, widths and classes those of the file.

    Args:
        path: path of the file.
        **options: :func:`fastmask.models.detection.maskrcnn_matterport`'s, such as ``anchor_sizes``; a file of weights
            does not tell them.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: h5py is missing.
        ValueError: it is no such file, or does not hold all of the model's layers.
    """
    if not is_matterport(path):
        raise ValueError(f"{os.fspath(path)} cannot be read as HDF5, by its first bytes")
    return maskrcnn_matterport(weights=path, **options).eval()
