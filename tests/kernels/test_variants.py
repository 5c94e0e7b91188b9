"""How many variants of each kernel get compiled as numbers of RoIs, boxes and masks change from call to call.

The launchers run on a driver that compiles for a GPU and launches nothing, so that Triton's own rules of specialisation
decide; in a process of its own, whose kernels are good for nothing else.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastmask.kernels.launch import HAS_TRITON, INTERPRET

if INTERPRET or not HAS_TRITON:
    pytest.skip("compiles ahead of time, which Triton's interpreter cannot", allow_module_level=True)

LAUNCH = """
import collections, json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from fastmask.kernels import gpu_bias_act, gpu_class_masks, gpu_decode, gpu_linear_add_relu, gpu_nms, gpu_paste
from fastmask.kernels import gpu_candidates, gpu_decode_levels, gpu_max_pool2d, gpu_nms_runs, gpu_predict_anchors
from fastmask.kernels import gpu_preprocess, gpu_stem_conv, gpu_take, gpu_top_anchors
from fastmask.kernels import gpu_rle, gpu_roi_align, gpu_roi_align_backward, gpu_roi_pool

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
pyramid = [torch.randn(2, 32, 16 >> i, 24 >> i).contiguous(memory_format=torch.channels_last) for i in range(4)]
scales, limits = [0.25, 0.125, 0.0625, 0.03125], [10.0, 20.0, 40.0, 80.0]
one = [f[:1].as_strided((1, *f.shape[1:]), (7, *f.stride()[1:])) for f in pyramid]  # whatever stride
planes, large = [f.contiguous() for f in pyramid], [torch.empty(1, 32, 1500, 1500)] * 4
heights, widths = [f.shape[2] for f in pyramid], [f.shape[3] for f in pyramid]

def rois_of(num):
    rois, grad = torch.rand(num, 5), torch.rand(num, 32, 3, 3)
    for maps in (pyramid, one, planes, large):
        gpu_roi_align.multilevel_roi_align(maps, rois, scales, limits, 3, 3, 2, False)
    gpu_roi_align_backward.multilevel_roi_align_backward(
        grad, rois, 2, heights, widths, scales, limits, 2, False
    )
    _, argmax = gpu_roi_pool.roi_pool(pyramid[0], rois, 0.25, 3, 3)
    gpu_roi_pool.roi_pool_backward(grad, rois, argmax, 0.25, 2, 16, 24)

def boxes_of(num):
    boxes, scores, groups = torch.rand(2, num, 4), torch.rand(2, num), torch.randint(3, (2, num))
    sizes = torch.full((2, 2), 100)
    gpu_decode.decode_boxes(
        torch.rand(2, 3 * num, 4), boxes, sizes, torch.rand(2, 3 * num), None, [1.0] * 4, 4.0, num / 10, num / 100, True
    )
    settings = ([1.0] * 4, 4.0, num / 10, num / 100)
    logits, index = torch.rand(2, num), torch.zeros(2, num, dtype=torch.int64)
    deltas = torch.rand(2, 12, num % 7 + 1, 9)
    gpu_decode_levels.decode_levels(
        logits, index, [num // 3, num - num // 3], [deltas] * 2, boxes[0], sizes, *settings
    )
    logits, deltas = torch.rand(2 * num, 112)[:, 3:10], torch.rand(2 * num, 7, 4)
    gpu_candidates.select_candidates(logits, deltas, boxes, sizes, sizes[:, 0], 3, *settings)
    for labels in (None, groups):
        gpu_take.take_kept(torch.zeros(2, num // 2, dtype=torch.int64), boxes, scores, labels)
    gpu_take.scale_boxes(boxes, sizes, sizes)
    gpu_nms.COMPARISONS = 2**25
    gpu_nms.nms_padded(boxes, scores, groups, None, 0.5, min(num, 100))
    gpu_nms.nms_padded(boxes, scores, None, None, 0.5, min(num, 100), 0, [num // 3, num - num // 3])
    gpu_nms.COMPARISONS, gpu_nms.MOST_WORDS, gpu_nms.LEAST_WINDOW = 0, 0, 8
    gpu_nms_runs.RUN = 64
    for gpu_nms.MERGES in (0, 2**32):
        gpu_nms.nms_padded(boxes, scores, groups, None, 0.5, min(num, 100), 3)

def masks_of(num):
    masks, boxes, sizes = torch.rand(num, 28, 28), torch.rand(num, 4), torch.full((num, 2), 100)
    gpu_paste.paste_masks(masks, boxes, 60, 90, "bool", 0.5, False, True, 1)
    gpu_rle.encode_masks(masks, boxes, sizes, 1000 * num, 0.5, False, True, 1)

def pictures_of(num):
    gpu_paste.paste_masks(torch.rand(1, 28, 28), torch.rand(1, 4), 3 * num, num, "bool", 0.5, False, True, 1)

def maps_of(num):
    y, bias, weight = (torch.zeros(size) for size in ((1, 32, num, 3), (32,), (15, 32)))
    y = y.contiguous(memory_format=torch.channels_last)
    for residual in (None, y.clone(), torch.zeros(1, 32, (num + 1) // 2, 2)):
        gpu_bias_act.bias_act_(y, bias, residual, True)
    rows, square = torch.zeros(num, 32).bfloat16(), torch.zeros(32, 32).bfloat16()
    gpu_linear_add_relu.linear_add_relu(rows, square, square[0], rows)
    gpu_predict_anchors.predict_anchors([y, pyramid[1]], bias, weight, bias[:15], 3)
    gpu_top_anchors.top_anchors([y.bfloat16(), pyramid[1].bfloat16()], 100 + num % 28)

weights = torch.randn(16, 64, 2, 2), torch.randn(64), torch.randn(5, 64), torch.randn(5)

def heads_of(num):
    for dtype in (torch.float32, torch.bfloat16):
        hidden, own = torch.empty(2 * num, 14, 14, 16, dtype=dtype).permute(0, 3, 1, 2), [w.to(dtype) for w in weights]
        labels, count = torch.zeros(2 * num, dtype=torch.int64), torch.tensor([num, 0])
        gpu_class_masks.class_masks(hidden, *own, labels, count)

def frames_of(num):
    pixels, image = torch.empty(2, 3, 32 + num, 64), torch.empty(3, num + 1, num % 7 + 1, dtype=torch.uint8)
    for images in ([], [image], [image.float(), image.permute(0, 2, 1)]):
        gpu_preprocess.preprocess(images, [num + 1, 7], [8, num + 2], torch.zeros(3), torch.ones(3), pixels)

def stems_of(num):
    pixels = torch.empty(2, num + 1, 2 * num + 2, 4, dtype=torch.bfloat16).permute(0, 3, 1, 2)[:, :3]
    maps = gpu_stem_conv.stem_conv(pixels, torch.zeros(7, 32, 64, dtype=torch.bfloat16), 3)
    gpu_max_pool2d.max_pool2d(maps, torch.zeros(64).bfloat16(), 3, 2, 1)
    gpu_max_pool2d.max_pool2d(maps, None, 1, 2, 0)

for num in [*range(34), *range(34, 2001, 61), 2000]:
    {"rois": rois_of, "boxes": boxes_of, "masks": masks_of, "pictures": pictures_of,
     "maps": maps_of, "heads": heads_of, "frames": frames_of, "stems": stems_of}[sys.argv[1]](num)
print(json.dumps({name: [len(found), launches[name]] for name, found in variants.items()}))
"""


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
            | {"_sort_runs_kernel": 1, "_merge_runs_kernel": 1}
            | {"_decode_levels_kernel": 1, "_select_kernel": 1, "_take_kernel": 2, "_scale_kernel": 1},
        ),
        # RLE's changes and positions; its text counted and written
        ("masks", {"_paste_kernel": 1, "_changes_kernel": 2, "_text_kernel": 2, "_sigmoid_kernel": 1}),
        # the sigmoid of one mask, whatever it is pasted on
        ("pictures", {"_paste_kernel": 1, "_sigmoid_kernel": 1}),
        # without a residual, with one, with a coarser one; two digits
        (
            "maps",
            {"_bias_act_kernel": 3, "_predict_anchors_kernel": 1, "_linear_add_relu_kernel": 1}
            | {"_count_digits_kernel": 2, "_keep_kernel": 1, "_sort_kept_kernel": 1},
        ),
        # of two dtypes
        ("heads", {"_class_masks_kernel": 2}),
        # whatever the images are
        ("frames", {"_preprocess_kernel": 1}),
        # the convolution; the stem's pooling and the pyramid's
        ("stems", {"_stem_conv_kernel": 1, "_max_pool2d_kernel": 2}),
    ],
    ids=["RoIs", "boxes", "masks", "pictures", "maps", "mask heads", "frames", "stems"],
)
def test_what_changes_from_call_to_call_compiles_nothing_new(
    what: str, expected: dict[str, int], tmp_path: Path
) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, what], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: variants for name, (variants, _) in found.items()} == expected
    assert all(launches > 50 for _, launches in found.values())
