"""The weights that come with the package."""

import json
from pathlib import Path

import pytest
import torch

from fastmask.demo import CLASSES
from fastmask.models import Checkpoint, detection, get_model, get_model_weights
from fastmask.models._api import WeightsEnum
from fastmask.models.detection import efficientnet_rcnn, slim
from fastmask.ops.misc import FrozenBatchNorm2d

SHAPES = detection.MaskRCNN_Slim_FPN_Weights.SHAPES_V1
BALLOONS = detection.MaskRCNN_EfficientNet_Lite0_FPN_Weights.BALLOON_V1
SHIPPED = [
    pytest.param("maskrcnn_slim_fpn", SHAPES, slim.WEIGHTS_FILE, 6e6, id="SHAPES_V1"),
    pytest.param("maskrcnn_efficientnet_lite0_fpn", BALLOONS, efficientnet_rcnn.WEIGHTS_FILE, 10e6, id="BALLOON_V1"),
]


@pytest.mark.parametrize(("name", "weights", "path", "max_bytes"), SHIPPED)
def test_shipped_weights(name: str, weights: WeightsEnum, path: Path, max_bytes: float) -> None:
    """They are what the enum says, small, and of finite halves; the enum's AP is that of their run's last epoch."""
    assert get_model_weights(name).DEFAULT is weights
    assert path.stat().st_size <= max_bytes
    file = Checkpoint(path)
    for key in ("categories", "num_classes"):
        assert weights.meta[key] == file.meta[key]
    assert file.meta.get("builder", name) == name
    options = file.meta["options"]
    assert weights.meta.get("options", {}).items() <= options.items()
    model = get_model(name, weights="DEFAULT", **weights.meta.get("options", {}))
    assert (model.transform.min_size[-1], model.transform.max_size) == (options["min_size"], options["max_size"])
    assert model.transform.image_mean == options.get("image_mean", model.transform.image_mean)
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert all(norm.eps == file.meta["norm_eps"] for norm in norms)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights.meta["num_params"]
    for key, value in model.state_dict().items():
        assert value.isfinite().all()
        assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float32)
        assert torch.equal(value, file.get_state_dict()[key].to(value.dtype))
    metrics = json.loads((path.parent / "epochs.json").read_text())[-1]
    (published,) = weights.meta["_metrics"].values()
    for kind in ("box", "mask"):
        assert metrics[kind][0] == pytest.approx(published[f"{kind}_map"] / 100, abs=1e-3)


def test_names() -> None:
    assert SHAPES.meta["categories"][1:] == list(CLASSES[:3])
    assert BALLOONS.meta["categories"][1:] == ["balloon"]
