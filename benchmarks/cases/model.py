"""A whole Mask R-CNN: inference, by the model and by a Predictor, and a training step."""

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
from fastmask.benchmarks.calibrate import calibrate
from fastmask.benchmarks.case import HAS_TORCHVISION, Case, CaseSpec, Check
from fastmask.benchmarks.inputs import IMAGE_SIZE, PADDED_SIZE, boxes_in, textured_image
from fastmask.evaluation.agreement import matched_share
from fastmask.inference.bfloat16 import has_native_bfloat16

ROUNDS = 5
OBJECTS = 8  # in an image that is not crowded


@functools.cache
def calibrated_model(library: str, device: torch.device) -> Any:
    """R50-FPN in eval mode with calibrated weights, as trained ones are not available; the same in both libraries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"weights": None, "weights_backbone": None}
        if library == "torchvision":
            import torchvision

            model = torchvision.models.get_model("maskrcnn_resnet50_fpn", **options)
            model.load_state_dict(calibrated_model("fastmask", torch.device("cpu")).state_dict())
        else:
            model = models.get_model("maskrcnn_resnet50_fpn", **options).eval()
            calibrate(model, [textured_image(torch.Generator().manual_seed(0), IMAGE_SIZE)])
    return model.eval().to(device)


def inference(generator: torch.Generator, device: torch.device, *, batch: int = 1, rle: bool = False) -> Case:
    """Inference from images to pasted masks, or to COCO RLE.

    On a GPU torchvision at its best is bfloat16 autocast on channels-last; on a CPU, channels-last.
    """
    images = [textured_image(generator, IMAGE_SIZE).to(device) for _ in range(batch)]
    on_cuda = device.type == "cuda"

    def encode(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for prediction in predictions:
            prediction["masks"] = encode_pasted(prediction["masks"][:, 0] > 0.5)
        return predictions

    def make_run(model: Any, autocast: bool = False) -> Callable[[], list[dict[str, Any]]]:
        def run() -> list[dict[str, Any]]:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                predictions: list[dict[str, Any]] = model(images)
            return encode(predictions) if rle else predictions

        return run

    def patch(run: Callable[[], Any]) -> Callable[[], Any]:
        def run_patched() -> Any:
            with fastmask.patch_torchvision():
                return run()

        return run_patched

    providers: dict[str, Callable[[], Any]] = {}
    checks: dict[str, Check] = {}
    if HAS_TORCHVISION:
        theirs = calibrated_model("torchvision", device)
        providers["torchvision"] = make_run(theirs)
        providers["torchvision at its best"] = make_run(channels_last_model(device), autocast=on_cuda)
        if on_cuda:
            providers["torchvision compiled"] = make_run(compiled_model(device))
            checks["torchvision at its best"] = check_bf16
    if not rle:
        providers["fastmask"] = make_run(calibrated_model("fastmask", device))
    for dtype in (torch.float32, torch.bfloat16) if on_cuda or has_native_bfloat16() else (torch.float32,):
        name = f"fastmask Predictor, {str(dtype).removeprefix('torch.')}"
        providers[name] = make_predictor_run(device, batch, dtype, rle, images)
        if dtype == torch.bfloat16:
            checks[name] = check_bf16
    if HAS_TORCHVISION and on_cuda:  # last: torchvision's ops stay a Python call slower afterwards
        providers["torchvision patched"] = patch(make_run(theirs))

    def check(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
        for mine, other in zip(decode_detections(ours), decode_detections(theirs), strict=True):
            assert len(mine["boxes"]) == 100, f"there must be 100 detections, got {len(mine['boxes'])}"
            share = matched_share(mine, other)
            # random weights magnify rounding: other convolutions, off by 1e-5, move eight detections in a hundred
            assert share >= (0.85 if on_cuda else 0.99), f"only {share:.3f} of the detections match"

    kind = "float32 (TF32 convolutions)" if on_cuda else "float32"
    what = f"RLE; baselines: {ENCODER}" if rle else "masks pasted"
    inputs = f"{batch} of {IMAGE_SIZE}, {kind} unless noted, ResNet-50 with FPN, 100 detections each, {what}"
    return Case(providers, check, inputs, checks=checks)


@functools.cache
def channels_last_model(device: torch.device) -> Any:
    return copy.deepcopy(calibrated_model("torchvision", device)).to(memory_format=torch.channels_last)


@functools.cache
def compiled_model(device: torch.device) -> Any:
    return torch.compile(calibrated_model("torchvision", device))


@functools.cache
def predictor(device: torch.device, batch: int, dtype: torch.dtype, masks: str, tf32: bool) -> fastmask.Predictor:
    """A Predictor for all sets of inputs; ``tf32``: whether its graphs were captured with TF32."""
    return fastmask.Predictor(calibrated_model("fastmask", device), PADDED_SIZE, batch, dtype, masks=masks)


def make_predictor_run(
    device: torch.device, batch: int, dtype: torch.dtype, rle: bool, images: list[Tensor]
) -> Callable[[], Any]:
    def run() -> Any:
        cached = predictor(device, batch, dtype, "rle" if rle else "float", torch.backends.cudnn.allow_tf32)
        return cached(images)

    return run


def decode_detections(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copy predictions to the CPU as float32, and decode RLE."""
    decoded = []
    for prediction in predictions:
        tensors = {name: value.float().cpu() for name, value in prediction.items() if isinstance(value, Tensor)}
        if not isinstance(prediction["masks"], Tensor):
            tensors["masks"] = torch.from_numpy(decode_masks(prediction["masks"]))[:, None].float()
        decoded.append(tensors)
    return decoded


def check_bf16(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Check that many boxes overlap one of their class: random weights magnify bfloat16's rounding."""
    from fastmask.ops import box_iou

    for mine, other in zip(decode_detections(ours), decode_detections(theirs), strict=True):
        near = box_iou(mine["boxes"], other["boxes"]) > 0.5
        near &= mine["labels"][:, None] == other["labels"]
        share = float(near.any(1).float().mean())
        assert share >= 0.4, f"only {share:.3f} of the boxes overlap one of their class"


def training_step(
    generator: torch.Generator, device: torch.device, *, frozen: bool = False, crowd: int | None = None
) -> Case:
    """Forward, backward and SGD: on a GPU 12 images under bfloat16 autocast, on a CPU two small ones in float32.

    With ``frozen``, norms and the first two stages are fixed, as both libraries train a pretrained backbone. With
    ``crowd``, there are four images, and the first one has so many objects.
    """
    on_cuda = device.type == "cuda"
    batch, size = (12, PADDED_SIZE) if on_cuda else (2, (256, 320))
    numbers = [OBJECTS] * batch if crowd is None else [crowd, *[OBJECTS] * 3]
    images = [textured_image(generator, size).to(device) for _ in numbers]
    targets = [draw_targets(generator, size, device, number) for number in numbers]

    def make_step(library: str) -> Callable[[], dict[str, float]]:
        def step() -> dict[str, float]:
            model, optimizer = training_setup(library, device, size, frozen)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_cuda):
                losses = model(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            return {name: loss.item() for name, loss in losses.items()}

        return step

    libraries = ("torchvision", "fastmask") if HAS_TORCHVISION else ("fastmask",)

    def check(ours: dict[str, float], theirs: dict[str, float]) -> None:
        assert ours.keys() == theirs.keys()
        for name, loss in theirs.items():  # samples are drawn, by each in its own way
            assert abs(ours[name] - loss) <= 0.3 * abs(loss) + 0.1, f"{name} is {ours[name]:.3f} beside {loss:.3f}"

    trained = "norms and two stages frozen" if frozen else "all trained"
    objects = "" if crowd is None else f", {crowd} objects in one image, {OBJECTS} in each other"
    kind = "bfloat16 autocast" if on_cuda else "float32"
    inputs = f"{len(numbers)} of {size}{objects}, {kind}, ResNet-50 with FPN, {trained}, SGD, losses read"
    return Case({name: make_step(name) for name in libraries}, check, inputs)


@functools.cache
def training_setup(
    library: str, device: torch.device, size: tuple[int, int], frozen: bool
) -> tuple[Any, torch.optim.Optimizer]:
    """A model in training mode and its optimizer, for all sets of inputs; lr is so small that weights barely change."""
    model = copy.deepcopy(calibrated_model(library, device))
    if frozen:
        detection = importlib.import_module(f"{library}.models.detection")
        backbone = detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, trainable_layers=3
        )
        weights = model.state_dict()
        model = detection.MaskRCNN(backbone, 91).to(device)
        model.load_state_dict(weights)
    model.train()
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    parameters = [values for values in model.parameters() if values.requires_grad]
    return model, torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, weight_decay=1e-4)


def draw_targets(
    generator: torch.Generator, size: tuple[int, int], device: torch.device, number: int
) -> dict[str, Tensor]:
    """Targets of an image: boxes, their labels, and masks that fill half of them."""
    boxes = boxes_in(generator, number, size, 2.0)
    masks = torch.zeros(number, *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1 : (x1 + x2) // 2 + 1] = 1
    labels = torch.randint(1, 91, (number,), generator=generator)
    return {name: value.to(device) for name, value in {"boxes": boxes, "labels": labels, "masks": masks}.items()}


def make_inference_spec(default: bool = True, *, batch: int = 1, rle: bool = False) -> CaseSpec:
    ours = (*(() if rle else ("fastmask",)), "fastmask Predictor, float32")
    return CaseSpec(
        functools.partial(inference, batch=batch, rle=rle),
        default,
        rounds=ROUNDS,
        providers=("torchvision", "torchvision at its best", *ours),
        on_cuda=("torchvision compiled", "fastmask Predictor, bfloat16", "torchvision patched"),
    )


SPECS: dict[str, CaseSpec] = {
    "Mask R-CNN": make_inference_spec(),
    "Mask R-CNN, encoded": make_inference_spec(rle=True),
    "Mask R-CNN, encoded, 8 images": make_inference_spec(default=False, rle=True, batch=8),
    "training step": CaseSpec(training_step, rounds=ROUNDS),
    "fine-tuning step": CaseSpec(functools.partial(training_step, frozen=True), rounds=ROUNDS),
    "training step, crowded batch": CaseSpec(functools.partial(training_step, crowd=1000), rounds=ROUNDS),
}
