"""A whole Mask R-CNN: inference, as torchvision's model and as a Predictor, and a step of training."""

import copy
import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastmask
from fastmask import models
from fastmask.benchmarks.baselines import ENCODER, decode_masks, encode_pasted
from fastmask.benchmarks.calibrate import settle
from fastmask.benchmarks.case import HAS_TORCHVISION, Case, Entry, Rule
from fastmask.benchmarks.inputs import IMAGE_SIZE, PADDED_SIZE, boxes_in, textured
from fastmask.evaluation.agreement import matched_share

ROUNDS = 5


@functools.cache
def settled_model(library: str, device: torch.device) -> Any:
    """R50-FPN in eval mode, its weights settled, as trained ones are not to be had; the same of both libraries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"weights": None, "weights_backbone": None}
        if library == "torchvision":
            import torchvision

            model = torchvision.models.get_model("maskrcnn_resnet50_fpn", **options)
            model.load_state_dict(settled_model("fastmask", torch.device("cpu")).state_dict())
        else:
            model = models.get_model("maskrcnn_resnet50_fpn", **options).eval()
            settle(model, [textured(torch.Generator().manual_seed(0), IMAGE_SIZE)])
    return model.eval().to(device)


def inference(generator: torch.Generator, device: torch.device, *, batch: int = 1, rle: bool = False) -> Case:
    """Images to pasted masks, or to COCO's RLE.

    On a GPU torchvision at its best is bfloat16 autocast on channels-last; on a CPU, channels-last.
    """
    images = [textured(generator, IMAGE_SIZE).to(device) for _ in range(batch)]
    on_cuda = device.type == "cuda"

    def encoded(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for one in found:
            one["masks"] = encode_pasted(one["masks"][:, 0] > 0.5)
        return found

    def runner(model: Any, autocast: bool = False) -> Callable[[], list[dict[str, Any]]]:
        def run() -> list[dict[str, Any]]:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                found: list[dict[str, Any]] = model(images)
            return encoded(found) if rle else found

        return run

    def patched(run: Callable[[], Any]) -> Callable[[], Any]:
        def patched_run() -> Any:
            with fastmask.patch_torchvision():
                return run()

        return patched_run

    providers: dict[str, Callable[[], Any]] = {}
    rules: dict[str, Rule] = {}
    if HAS_TORCHVISION:
        theirs = settled_model("torchvision", device)
        providers["torchvision"] = runner(theirs)
        providers["torchvision at its best"] = runner(channels_last(device), autocast=on_cuda)
        if on_cuda:
            providers["torchvision compiled"] = runner(compiled(device))
            rules["torchvision at its best"] = half_rule
    if not rle:
        providers["fastmask"] = runner(settled_model("fastmask", device))
    for dtype in (torch.float32, torch.bfloat16) if on_cuda else (torch.float32,):
        name = f"fastmask Predictor, {str(dtype).removeprefix('torch.')}"
        providers[name] = predicting(device, batch, dtype, rle, images)
        if dtype == torch.bfloat16:
            rules[name] = half_rule
    if HAS_TORCHVISION and on_cuda:  # last: its ops stay a Python call slower afterwards
        providers["torchvision patched"] = patched(runner(theirs))

    def agree(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
        for mine, other in zip(comparable(ours), comparable(theirs), strict=True):
            assert len(mine["boxes"]) == 100, f"there must be 100 detections, got {len(mine['boxes'])}"
            share = matched_share(mine, other)
            # random weights magnify rounding: another library's convolutions, off by 1e-5, move eight in a hundred
            assert share >= (0.85 if on_cuda else 0.99), f"only {share:.3f} of the detections match"

    kind = "float32 (TF32 convolutions)" if on_cuda else "float32"
    what = f"RLE; baselines: {ENCODER}" if rle else "masks pasted"
    inputs = f"{batch} of {IMAGE_SIZE}, {kind} unless said, ResNet-50 with FPN, 100 detections each, {what}"
    return Case(providers, agree, inputs, rules=rules)


@functools.cache
def channels_last(device: torch.device) -> Any:
    return copy.deepcopy(settled_model("torchvision", device)).to(memory_format=torch.channels_last)


@functools.cache
def compiled(device: torch.device) -> Any:
    return torch.compile(settled_model("torchvision", device))


@functools.cache
def predictor(device: torch.device, batch: int, dtype: torch.dtype, masks: str, tf32: bool) -> fastmask.Predictor:
    """A Predictor for all sets of inputs; ``tf32``: what its graphs are captured with."""
    return fastmask.Predictor(settled_model("fastmask", device), PADDED_SIZE, batch, dtype, masks=masks)


def predicting(
    device: torch.device, batch: int, dtype: torch.dtype, rle: bool, images: list[Tensor]
) -> Callable[[], Any]:
    def run() -> Any:
        made = predictor(device, batch, dtype, "rle" if rle else "float", torch.backends.cudnn.allow_tf32)
        return made(images)

    return run


def comparable(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """On the CPU, RLE decoded."""
    out = []
    for one in found:
        plain = {name: value.float().cpu() for name, value in one.items() if isinstance(value, Tensor)}
        if not isinstance(one["masks"], Tensor):
            plain["masks"] = torch.from_numpy(decode_masks(one["masks"]))[:, None].float()
        out.append(plain)
    return out


def half_rule(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """bfloat16 on random weights, which magnify rounding: many boxes still lie where one of their class was."""
    from fastmask.ops import box_iou

    for mine, other in zip(comparable(ours), comparable(theirs), strict=True):
        near = box_iou(mine["boxes"], other["boxes"]) > 0.5
        near &= mine["labels"][:, None] == other["labels"]
        share = float(near.any(1).float().mean())
        assert share >= 0.4, f"only {share:.3f} of the boxes have a near one of their class"


def training_step(generator: torch.Generator, device: torch.device, *, frozen: bool = False) -> Case:
    """Forward, backward and SGD: on a GPU 12 images under bfloat16 autocast, on a CPU two small ones in float32.

    ``frozen`` is what both libraries train from a pretrained backbone: norms fixed, the first two stages too.
    """
    on_cuda = device.type == "cuda"
    batch, size = (12, PADDED_SIZE) if on_cuda else (2, (256, 320))
    images = [textured(generator, size).to(device) for _ in range(batch)]
    targets = [drawn_targets(generator, size, device) for _ in range(batch)]

    def stepping(library: str) -> Callable[[], dict[str, float]]:
        def step() -> dict[str, float]:
            model, optimizer = training(library, device, size, frozen)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_cuda):
                losses = model(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            return {name: loss.item() for name, loss in losses.items()}

        return step

    libraries = ("torchvision", "fastmask") if HAS_TORCHVISION else ("fastmask",)

    def agree(ours: dict[str, float], theirs: dict[str, float]) -> None:
        assert ours.keys() == theirs.keys()
        for name, loss in theirs.items():  # samples are drawn, by each in its own way
            assert abs(ours[name] - loss) <= 0.3 * abs(loss) + 0.1, f"{name} is {ours[name]:.3f} beside {loss:.3f}"

    trained = "norms and two stages frozen" if frozen else "all trained"
    kind = "bfloat16 autocast" if on_cuda else "float32"
    inputs = f"{batch} of {size}, {kind}, ResNet-50 with FPN, {trained}, SGD, losses read"
    return Case({name: stepping(name) for name in libraries}, agree, inputs)


@functools.cache
def training(
    library: str, device: torch.device, size: tuple[int, int], frozen: bool
) -> tuple[Any, torch.optim.Optimizer]:
    """A model in training mode and its optimizer, for all sets of inputs; steps so small that it stays what it is."""
    model = copy.deepcopy(settled_model(library, device))
    if frozen:
        detection = importlib.import_module(f"{library}.models.detection")
        backbone = detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, trainable_layers=3
        )
        settled = model.state_dict()
        model = detection.MaskRCNN(backbone, 91).to(device)
        model.load_state_dict(settled)
    model.train()
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    parameters = [values for values in model.parameters() if values.requires_grad]
    return model, torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, weight_decay=1e-4)


def drawn_targets(generator: torch.Generator, size: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """Eight boxes, their labels, and masks that fill half of them."""
    boxes = boxes_in(generator, 8, size, 2.0)
    masks = torch.zeros(8, *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1 : (x1 + x2) // 2 + 1] = 1
    labels = torch.randint(1, 91, (8,), generator=generator)
    return {name: value.to(device) for name, value in {"boxes": boxes, "labels": labels, "masks": masks}.items()}


def inference_entry(chosen: bool = True, *, batch: int = 1, rle: bool = False) -> Entry:
    ours = (*(() if rle else ("fastmask",)), "fastmask Predictor, float32")
    return Entry(
        functools.partial(inference, batch=batch, rle=rle),
        chosen,
        rounds=ROUNDS,
        providers=("torchvision", "torchvision at its best", *ours),
        on_cuda=("torchvision compiled", "fastmask Predictor, bfloat16", "torchvision patched"),
    )


ENTRIES: dict[str, Entry] = {
    "Mask R-CNN": inference_entry(),
    "Mask R-CNN, encoded": inference_entry(rle=True),
    "Mask R-CNN, encoded, 8 images": inference_entry(chosen=False, rle=True, batch=8),
    "training step": Entry(training_step, rounds=ROUNDS),
    "fine-tuning step": Entry(functools.partial(training_step, frozen=True), rounds=ROUNDS),
}
