"""All benchmark cases, by name.

Shapes are those of a Mask R-CNN on an image of 800 x 1344 pixels: P2 to P5 of 256 channels, 1000 RoIs, the 4819
candidates that an RPN keeps of its five levels, 100 masks of 28 x 28.
"""

from fastmask.benchmarks.case import CaseSpec
from fastmask.benchmarks.cases import host, keypoints, masks, model, nms, roi_align

MODULES = (roi_align, nms, masks, keypoints, host, model)  # models last: patching leaves a trace
CASES: dict[str, CaseSpec] = {name: spec for module in MODULES for name, spec in module.SPECS.items()}
