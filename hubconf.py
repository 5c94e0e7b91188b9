"""torch.hub's entry points: the builders of fastmask.models, such as torch.hub.load(..., "maskrcnn_resnet50_fpn")."""

from pathlib import Path as _Path

import fastmask as _fastmask

dependencies = ["torch", "numpy", "PIL", "tqdm", "safetensors"]  # pycocotools is for RLE alone, Triton for GPUs

_root = _Path(__file__).parent
if not (_root / "fastmask" / "kernels").is_dir():  # torch.hub unpacks links, such as this one, as files
    _fastmask.__path__.append(str(_root))

from fastmask.models import _api, list_models  # noqa: E402 -- they import fastmask.kernels

globals().update({_name: _api.get_model_builder(_name) for _name in (*list_models(), *_api.list_families())})
del list_models
