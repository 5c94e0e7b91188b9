"""The model that a checkpoint is of: ours, torchvision's, detectron2's or matterport's."""

import os
from typing import Any, cast

from fastmask.models._api import check_detector, get_model_builder, get_model_weights
from fastmask.models._metadata import parse_options
from fastmask.models._state import find_builders
from fastmask.models.checkpoint import Checkpoint
from fastmask.models.detection._weights import find_weights
from fastmask.models.detection.faster_rcnn import FasterRCNN


def from_checkpoint(
    path: str | os.PathLike[str], *, builder: str | None = None, input_format: str | None = None, **options: Any
) -> FasterRCNN:
    """Build the model that a checkpoint is of, with its weights and conventions, in eval mode.

    Args:
        path: of a file of ``fastmask train`` or :func:`save_weights`; of torchvision's; of detectron2's, .pkl as its
            model zoo has them or .pth as its trainer writes them; or of matterport's, .h5. Or the name of safetensors
            on the hub, ``hf://owner/name[/file][@revision]``.
        builder: name of the builder, where neither the file nor its keys and shapes tell it.
        input_format: order of channels of the images that a detectron2 model was trained on, "BGR" (None) or "RGB"; the
            model always takes RGB in [0, 1].
        options: the builder's, instead of the file's: ``box_score_thresh=0.5``; ``num_classes=3,
            new_predictors=True`` to fine-tune on other classes; ``stride_in_1x1=False`` with ``image_mean`` and
            ``image_std`` for a detectron2 model that began with other weights than the published ones.

    Returns:
        FasterRCNN: or a subclass, :class:`MaskRCNN` or :class:`KeypointRCNN`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, of a model that fastmask does not build, or of several builders; or an
            option does not fit it.
    """
    return build_from(Checkpoint(path, input_format=input_format), builder, options)[1]


def build_from(checkpoint: Checkpoint, builder: str | None, options: dict[str, Any]) -> tuple[str, FasterRCNN]:
    """The builder's name of a checkpoint, and its model; see :func:`from_checkpoint`."""
    trained = checkpoint.meta.get("builder")
    if trained not in (None, builder) and builder is not None:
        raise ValueError(f"builder must be {trained} with {checkpoint}, got {builder}")
    name = trained or builder or _recognize(checkpoint)
    check_detector("builder", name)
    settings: dict[str, Any] = checkpoint.meta.setdefault("options", {})
    settings |= parse_options(options)
    weights = find_weights(get_model_weights(name), checkpoint)
    model = get_model_builder(name)(weights=weights, **(settings | options))
    return name, cast(FasterRCNN, model.eval())


def _recognize(checkpoint: Checkpoint) -> str:
    """The builder whose keys and shapes a file has; of several, the one whose published file has its name."""
    names = find_builders(checkpoint.get_state_dict())
    file = os.path.basename(checkpoint.path)
    published = [n for n in names if file in {member.url.rpartition("/")[2] for member in get_model_weights(n)}]
    if len(published or names) != 1:
        got = f"keys and shapes of {' and '.join(names)}" if names else "keys and shapes of none"
        raise ValueError(f"builder must be named for {checkpoint}, which does not tell its model, got {got}")
    return (published or names)[0]
