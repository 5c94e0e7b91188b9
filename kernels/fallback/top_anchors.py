"""Top-k anchors of each level, eager fallback: a stable sort of each."""

from collections.abc import Sequence

import torch
from torch import Tensor


def top_anchors(logits: Sequence[Tensor], number: int) -> tuple[Tensor, Tensor]:
    """Logits [B, A, H, W] of each level -> the best [B, N] of at most ``number`` of each, and their places [B, N].

    Level after level, in each the largest first (NaN before them), of equal ones the first in the order of anchors
    (row, column, anchor). Places count through all levels, int64.
    """
    best, places, before = [], [], 0
    for logit in logits:
        row = logit.permute(0, 2, 3, 1).flatten(1)
        found = row.sort(dim=1, descending=True, stable=True)
        best.append(found.values[:, :number])
        places.append(found.indices[:, :number] + before)
        before += row.shape[1]
    return torch.cat(best, 1), torch.cat(places, 1)
