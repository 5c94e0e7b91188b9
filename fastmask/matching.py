"""How much two sets of detections agree: what is asked of the float32 paths, wherever two of them are compared."""

from collections.abc import Mapping

from torch import Tensor


def matched_share(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The share of detections that have a twin on the other side: label, 1 pixel, score 1e-3, mask IoU above 0.99.

    Args:
        actual, expected: boxes [N, 4], labels [N], scores [N] and, if ``expected`` has them, masks [N, 1, H, W] as
            probabilities, of one picture.

    Returns:
        From 0 to 1; 1 if both are empty.
    """
    total = len(actual["boxes"]) + len(expected["boxes"])
    if total == 0:
        return 1.0
    twin = actual["labels"][:, None] == expected["labels"]
    twin &= ((actual["boxes"][:, None] - expected["boxes"]).abs() <= 1).all(2)
    twin &= (actual["scores"][:, None] - expected["scores"]).abs() <= 1e-3
    if "masks" in expected:
        for i, j in twin.nonzero().tolist():
            a, b = actual["masks"][i] > 0.5, expected["masks"][j] > 0.5
            union = int((a | b).sum())
            twin[i, j] = union == 0 or int((a & b).sum()) / union > 0.99
    return float(twin.any(1).sum() + twin.any(0).sum()) / total
