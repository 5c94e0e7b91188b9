"""How many variants of each kernel get compiled as numbers of RoIs, boxes and masks change from call to call.

The launchers run on a driver that compiles for a GPU and launches nothing, so that Triton's own rules of specialization
decide; in a process of its own, whose kernels are good for nothing else: they stay in Triton's own language, and
audit.py compiles them to the end.
"""

import json
import os
import subprocess
import sys

import pytest

from fastmask.kernels.launch import HAS_TRITON, INTERPRET

if INTERPRET or not HAS_TRITON:
    pytest.skip("compiles ahead of time, which Triton's interpreter cannot", allow_module_level=True)

LAUNCH = """
import collections, json
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction
from fastmask.kernels.triton import bias_act as bias_act_triton, class_masks as class_masks_triton
from fastmask.kernels.triton import decode as decode_triton, linear_add_relu as linear_add_relu_triton
from fastmask.kernels.triton import nms as nms_triton, paste as paste_triton, candidates as candidates_triton
from fastmask.kernels.triton import decode_levels as decode_levels_triton, max_pool2d as max_pool2d_triton
from fastmask.kernels.triton import nms_runs as nms_runs_triton, predict_anchors as predict_anchors_triton
from fastmask.kernels.triton import keypoints as keypoints_triton, preprocess as preprocess_triton
from fastmask.kernels.triton import soft_nms as soft_nms_triton, stem_conv as stem_conv_triton
from fastmask.kernels.triton import take as take_triton, top_anchors as top_anchors_triton, rle as rle_triton
from fastmask.kernels.triton import roi_align as roi_align_triton, roi_align_backward as roi_align_backward_triton
from fastmask.kernels.triton import roi_pool as roi_pool_triton

class Compiles:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

triton.runtime.driver.set_active(Compiles())
run = JITFunction.run
variants, launches = collections.defaultdict(set), collections.Counter()

def compile_only(self, *args, warmup, **kwargs):
    kernel = run(self, *args, warmup=True, **kwargs)
    variants[self.__name__].add(kernel.hash)
    launches[self.__name__] += 1
    return kernel

JITFunction.run = compile_only
add_stages = CUDABackend.add_stages

def add_first_stage(self, stages, *args):
    add_stages(self, stages, *args)
    for name in ("ttgir", "llir", "ptx"):
        stages[name] = lambda source, metadata: source
    stages["cubin"] = lambda source, metadata: metadata.update(name="", shared=0) or b""

CUDABackend.add_stages = add_first_stage
pyramid = [torch.randn(2, 32, 16 >> i, 24 >> i).contiguous(memory_format=torch.channels_last) for i in range(4)]
scales, limits = [0.25, 0.125, 0.0625, 0.03125], [10.0, 20.0, 40.0, 80.0]
one = [f[:1].as_strided((1, *f.shape[1:]), (7, *f.stride()[1:])) for f in pyramid]  # whatever stride
planes, large = [f.contiguous() for f in pyramid], [torch.empty(1, 32, 1500, 1500)] * 4
heights, widths = [f.shape[2] for f in pyramid], [f.shape[3] for f in pyramid]

def rois_of(num):
    rois, grad = torch.rand(num, 5), torch.rand(num, 32, 3, 3)
    for maps in (pyramid, one, planes, large):
        roi_align_triton.multilevel_roi_align(maps, rois, scales, limits, 3, 3, 2, False)
    roi_align_backward_triton.multilevel_roi_align_backward(
        grad, rois, 2, heights, widths, scales, limits, 2, False
    )
    _, argmax = roi_pool_triton.roi_pool(pyramid[0], rois, 0.25, 3, 3)
    roi_pool_triton.roi_pool_backward(grad, rois, argmax, 0.25, 2, 16, 24)

def boxes_of(num):
    boxes, scores, groups = torch.rand(2, num, 4), torch.rand(2, num), torch.randint(3, (2, num))
    sizes = torch.full((2, 2), 100)
    decode_triton.decode_boxes(
        torch.rand(2, 3 * num, 4), boxes, sizes, torch.rand(2, 3 * num), None, [1.0] * 4, 4.0, num / 10, num / 100, True
    )
    settings = ([1.0] * 4, 4.0, num / 10, num / 100)
    logits, index = torch.rand(2, num), torch.zeros(2, num, dtype=torch.int64)
    deltas = torch.rand(2, 12, num % 7 + 1, 9)
    decode_levels_triton.decode_levels(
        logits, index, [num // 3, num - num // 3], [deltas] * 2, boxes[0], sizes, *settings
    )
    logits, deltas = torch.rand(2 * num, 112)[:, 3:10], torch.rand(2 * num, 7, 4)
    candidates_triton.select_candidates(logits, deltas, boxes, sizes, sizes[:, 0], 3, *settings)
    for labels in (None, groups):
        take_triton.take_kept(torch.zeros(2, num // 2, dtype=torch.int64), boxes, scores, labels)
    take_triton.scale_boxes(boxes, sizes, sizes)
    nms_triton.COMPARISONS = 2**25
    nms_triton.nms_padded(boxes, scores, groups, None, 0.5, min(num, 100))
    nms_triton.nms_padded(boxes, scores, None, None, 0.5, min(num, 100), 0, [num // 3, num - num // 3])
    soft_nms_triton.soft_nms_padded(boxes, scores, groups, None, 0.5, num / 10, True, num / 9999, min(num, 100))
    nms_triton.COMPARISONS, nms_triton.MAX_WORDS, nms_triton.MIN_WINDOW = 0, 0, 8
    nms_runs_triton.RUN = 64
    for nms_triton.MERGES in (0, 2**32):
        nms_triton.nms_padded(boxes, scores, groups, None, 0.5, min(num, 100), 3)

def masks_of(num):
    masks, boxes, sizes = torch.rand(num, 28, 28), torch.rand(num, 4), torch.full((num, 2), 100)
    paste_triton.paste_masks(masks, boxes, 60, 90, "bool", 0.5, False, True, 1)
    rle_triton.encode_masks(masks, boxes, sizes, 1000 * num, 0.5, False, True, 1)

def images_of(num):
    paste_triton.paste_masks(torch.rand(1, 28, 28), torch.rand(1, 4), 3 * num, num, "bool", 0.5, False, True, 1)

def maps_of(num):
    y, bias, weight = (torch.zeros(size) for size in ((1, 32, num, 3), (32,), (15, 32)))
    y = y.contiguous(memory_format=torch.channels_last)
    for residual in (None, y.clone(), torch.zeros(1, 32, (num + 1) // 2, 2)):
        bias_act_triton.bias_act_(y, bias, residual, True)
    rows, square = torch.zeros(num, 32).bfloat16(), torch.zeros(32, 32).bfloat16()
    linear_add_relu_triton.linear_add_relu(rows, square, square[0], rows)
    predict_anchors_triton.predict_anchors([y, pyramid[1]], bias, weight, bias[:15], 3)
    top_anchors_triton.top_anchors([y.bfloat16(), pyramid[1].bfloat16()], 100 + num % 28)

weights = torch.randn(16, 64, 2, 2), torch.randn(64), torch.randn(5, 64), torch.randn(5)

def heads_of(num):
    for dtype in (torch.float32, torch.bfloat16):
        hidden, own = torch.empty(2 * num, 14, 14, 16, dtype=dtype).permute(0, 3, 1, 2), [w.to(dtype) for w in weights]
        labels, count = torch.zeros(2 * num, dtype=torch.int64), torch.tensor([num, 0])
        class_masks_triton.class_masks(hidden, *own, labels, count)
    keypoints_triton.decode_keypoints(torch.empty(num, 3, 2 + num % 50, 1 + num % 7), torch.zeros(num, 4), 9 * num, num)

def frames_of(num):
    pixels, image = torch.empty(2, 3, 32 + num, 64), torch.empty(3, num + 1, num % 7 + 1, dtype=torch.uint8)
    for images in ([], [image], [image.float(), image.permute(0, 2, 1)]):
        preprocess_triton.preprocess(images, [num + 1, 7], [8, num + 2], torch.zeros(3), torch.ones(3), pixels)

def stems_of(num):
    pixels = torch.empty(2, num + 1, 2 * num + 2, 4, dtype=torch.bfloat16).permute(0, 3, 1, 2)[:, :3]
    maps = stem_conv_triton.stem_conv(pixels, torch.zeros(7, 32, 64, dtype=torch.bfloat16), 3)
    max_pool2d_triton.max_pool2d(maps, torch.zeros(64).bfloat16(), 3, 2, 1)
    max_pool2d_triton.max_pool2d(maps, None, 1, 2, 0)

found = {}
for of in (rois_of, boxes_of, masks_of, images_of, maps_of, heads_of, frames_of, stems_of):
    variants.clear(), launches.clear()
    for num in [*range(34), *range(34, 2001, 61), 2000]:
        of(num)
    found[of.__name__] = {name: [len(variants[name]), number] for name, number in launches.items()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[int, int]]]:
    """Variants and launches of each kernel, by what was launched."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        # of all maps' keys: four levels for RoIAlign, one for RoIPool; of copies: the maps' and the gradient's
        (
            "rois",
            {
                **{"_forward_kernel": 2, "_apart_kernel": 1, "_copy_kernel": 2},
                **{"_backward_kernel": 2, "_table_kernel": 1, "_keys_kernel": 2},
            },
        ),
        # candidates; NMS counted, presorted, sorted and merged from runs; pairs with groups and without; rows with
        # labels and without
        (
            "boxes",
            {"_count_kernel": 1, "_run_keys_kernel": 1, "_merge_kernel": 1, "_score_keys_kernel": 1}
            | {"_unit_keys_kernel": 1, "_place_kernel": 1, "_pairs_kernel": 2, "_strike_kernel": 2}
            | {"_resolve_kernel": 2, "_list_kernel": 1, "_decode_kernel": 1}
            | {"_sort_runs_kernel": 1, "_merge_runs_kernel": 1, "_soft_nms_kernel": 1}
            | {"_decode_levels_kernel": 1, "_select_kernel": 1, "_take_kernel": 2, "_scale_kernel": 1},
        ),
        # RLE's changes and positions; its text counted and written
        ("masks", {"_paste_kernel": 1, "_changes_kernel": 2, "_text_kernel": 2, "_sigmoid_kernel": 1}),
        # the sigmoid of one mask, whatever it is pasted on
        ("images", {"_paste_kernel": 1, "_sigmoid_kernel": 1}),
        # without a residual, with one, with a coarser one; two digits
        (
            "maps",
            {"_bias_act_kernel": 3, "_predict_anchors_kernel": 1, "_linear_add_relu_kernel": 1}
            | {"_count_digits_kernel": 2, "_keep_kernel": 1, "_sort_kept_kernel": 1},
        ),
        # of two dtypes
        ("heads", {"_class_masks_kernel": 2, "_decode_keypoints_kernel": 1}),
        # whatever the images are
        ("frames", {"_preprocess_kernel": 1}),
        # the convolution; the stem's pooling and the pyramid's
        ("stems", {"_stem_conv_kernel": 1, "_max_pool2d_kernel": 2}),
    ],
    ids=["RoIs", "boxes", "masks", "images", "maps", "mask heads", "frames", "stems"],
)
def test_what_changes_from_call_to_call_compiles_nothing_new(
    what: str, expected: dict[str, int], compiled: dict[str, dict[str, tuple[int, int]]]
) -> None:
    found = compiled[f"{what}_of"]
    assert {name: variants for name, (variants, _) in found.items()} == expected
    assert all(launches > 50 for _, launches in found.values())
