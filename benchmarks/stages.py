"""The stages of a Predictor's program, each timed alone."""

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fastmask.benchmarks.measure import synchronize
from fastmask.inference.program import Inputs, Program, capture_graph
from fastmask.kernels.launch import is_capturable
from fastmask.models.detection._mask_head import predict_mask_probs
from fastmask.models.detection._roi_stages import pool
from fastmask.models.detection.generalized_rcnn import Padded, drop_padding
from fastmask.structures import Features

Stage = Callable[[], Any]


def build_stages(program: Program, inputs: Inputs, outputs: dict[str, Any]) -> dict[str, Stage]:
    """The program's stages; each reads earlier outputs from ``outputs`` and adds its own; the last is "packed"."""
    model: Any = program.model
    heads = model.roi_heads
    scales = model.extract_features(inputs.pixels).scales
    size = (inputs.pixels.shape[2], inputs.pixels.shape[3])

    def cut(padded: Padded) -> Padded:
        return drop_padding(padded) if program.trim else padded

    def box_head() -> None:
        logits, deltas = heads.box_predictor(heads.box_head(outputs["pooled"]))
        outputs["classes"] = logits, deltas.unflatten(1, (-1, 4))

    def masks() -> None:
        hidden = heads.mask_head(outputs["pooled masks"])
        detections = outputs["detected"]
        outputs["masks"] = predict_mask_probs(heads.mask_predictor, hidden, detections.labels, detections.count)

    def keep(name: str, function: Callable[[], Any]) -> Stage:
        def stage() -> None:
            outputs[name] = function()

        return stage

    return {
        "backbone": keep("body", lambda: model.backbone.body(inputs.pixels)),
        "FPN": keep("features", lambda: Features(model.backbone.fpn(outputs["body"]), scales)),
        "RPN head": keep("RPN outputs", lambda: model.rpn.predict(outputs["features"], size)),
        "proposals": keep("proposals", lambda: cut(model.rpn.propose(outputs["RPN outputs"], inputs.sizes))),
        "RoIAlign 7 x 7": keep(
            "pooled",
            lambda: pool(
                heads.box_roi_pool,
                outputs["features"],
                outputs["proposals"].boxes,
                rois=outputs["proposals"].rois,
            ),
        ),
        "box head": box_head,
        "detections": keep(
            "detected",
            lambda: cut(
                heads.suppress(heads.select_candidates(*outputs["classes"], outputs["proposals"], inputs.sizes))
            ),
        ),
        "RoIAlign 14 x 14": keep(
            "pooled masks",
            lambda: pool(
                heads.mask_roi_pool, outputs["features"], outputs["detected"].boxes, rois=outputs["detected"].rois
            ),
        ),
        "mask head": masks,
        "RLE and packing": keep(
            "packed", lambda: program.pack(inputs, outputs["detected"]._replace(masks=outputs["masks"]))
        ),
    }


def time_in_turns(runs: dict[str, Stage], device: torch.device, rounds: int) -> dict[str, float]:
    """Median milliseconds of each call; all of them in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            if device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                end.synchronize()
                times[name].append(start.elapsed_time(end))
            else:
                begin = time.perf_counter()
                run()
                synchronize(device)
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def time_stages(
    program: Program, inputs: Inputs, rounds: int, save: Callable[[dict[str, float]], None] = lambda _: None
) -> tuple[dict[str, float], float]:
    """Median milliseconds of each stage, and of the whole program; on a GPU each is a CUDA graph of its own.

    ``save`` is called with the times so far whenever a stage has been captured (which may compile for long): each stage
    alone, a few rounds. At the end all are timed in turns, so that each finds its predecessor's outputs in the caches.
    """
    device = inputs.pixels.device
    alone: dict[str, float] = {}
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        stream = torch.cuda.Stream(device) if device.type == "cuda" and is_capturable() else None
        parts: dict[str, Stage] = {}
        for name, stage in build_stages(program, inputs, {}).items():
            parts[name] = capture_graph(stage, None, stream)
            parts[name]()  # a graph that is only captured leaves no outputs for the next stage
            save(alone := alone | time_in_turns({name: parts[name]}, device, min(rounds, 5)))
        whole = {"program": capture_graph(lambda: program(inputs), None, stream)}
        return time_in_turns(parts, device, rounds), time_in_turns(whole, device, rounds)["program"]
