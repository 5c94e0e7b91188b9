"""Matching of candidates to ground-truth instances and sampling for training: fixed shapes, nothing data-dependent."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastmask.checks import ArgumentError, is_readable
from fastmask.ops.boxes import box_iou

MOST_PAIRS = 2**26  # instances x candidates whose IoU is computed at once: 256 MB, and ten temporaries of that size
MOST_PAIRS_ON_CPU = 2**22  # 400 x 65,472 took a third of the time in such parts on two cores


class Best(NamedTuple):
    """The best of some instances for each of N candidates."""

    quality: Tensor  # [..., N] IoU with the best instance
    instance: Tensor  # [..., N] int64, the first one of equal IoU
    wanted: Tensor | None  # [..., N] bool, whether it is any instance's best candidate; None if that is not asked

    def join(self, later: "Best", first: int) -> "Best":
        """The best of these instances and of later ones, the first of which has the index ``first``."""
        quality, which = torch.stack((self.quality, later.quality)).max(dim=0)  # NaN wins, as in one matrix
        instance = torch.where(which > 0, later.instance + first, self.instance)
        wanted = None if self.wanted is None or later.wanted is None else self.wanted | later.wanted
        return Best(quality, instance, wanted)


class Matcher:
    """Assigns candidates to ground-truth instances by IoU (Faster R-CNN, section 3.1.2).

    Args:
        high_threshold: minimum IoU of a match; a candidate matches the instance that it overlaps most.
        low_threshold: a candidate below it is background; between the two it is neither.
        allow_low_quality_matches: match the best candidates of each instance in any case, ties included.

    Source: torchvision/models/detection/_utils.py.
    """

    BELOW_LOW_THRESHOLD = -1
    BETWEEN_THRESHOLDS = -2

    def __init__(self, high_threshold: float, low_threshold: float, allow_low_quality_matches: bool = False) -> None:
        if low_threshold > high_threshold:
            raise ArgumentError(f"low_threshold must be at most {high_threshold}, got {low_threshold}")
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """IoU [..., G, N] of instances (rows of -1 for padding) and candidates -> [..., N]: an instance, -1 or -2."""
        if match_quality_matrix.numel() == 0:
            missing = "ground-truth" if match_quality_matrix.shape[-2] == 0 else "proposal"
            raise ArgumentError(
                f"match_quality_matrix must not be empty, got {tuple(match_quality_matrix.shape)}: "
                f"No {missing} boxes available for one of the images during training"
            )
        quality, instance = match_quality_matrix.max(dim=-2)
        matches = self._compare(quality, instance)
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(matches, instance, match_quality_matrix)
        return matches

    def find_best(self, iou: Tensor) -> Best:
        """IoU [..., G, N] of some instances -> the best of these for each candidate."""
        return Best(*iou.max(dim=-2), find_wanted(iou) if self.allow_low_quality_matches else None)

    def decide(self, best: Best) -> Tensor:
        """The best of all instances for each candidate -> see :meth:`__call__`."""
        matches = self._compare(best.quality, best.instance)
        return matches if best.wanted is None else torch.where(best.wanted, best.instance, matches)

    def _compare(self, quality: Tensor, instance: Tensor) -> Tensor:
        matches = torch.where(quality < self.high_threshold, self.BETWEEN_THRESHOLDS, instance)
        return torch.where(quality < self.low_threshold, self.BELOW_LOW_THRESHOLD, matches)

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor) -> None:
        """Match in place the candidates [..., N] that an instance overlaps most, ties included.

        Args:
            matches: written to.
            all_matches: the instance that each candidate overlaps most.
            match_quality_matrix: IoU [..., G, N], rows of -1 for padding.
        """
        matches.copy_(torch.where(find_wanted(match_quality_matrix), all_matches, matches))


def find_wanted(iou: Tensor) -> Tensor:
    """IoU [..., G, N] -> whether a candidate is any instance's best one, ties included, bool [..., N]."""
    best = iou.amax(dim=-1, keepdim=True)
    return ((iou == best) & (best >= 0)).any(dim=-2)


class Sample(NamedTuple):
    """Candidates drawn for training: positives first, then negatives, then padding."""

    indices: Tensor  # [B, S] int64 into the candidates
    positive: Tensor  # [B, S] bool
    valid: Tensor  # [B, S] bool, False for padding


class BalancedPositiveNegativeSampler:
    """Draws positives up to a fraction and fills up with negatives.

    Args:
        batch_size_per_image: number of samples S of an image.
        positive_fraction: largest share of positives in S.

    Source: torchvision/models/detection/_utils.py, with random keys and top-k in place of permutations of nonzero.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def max_positives(self) -> int:
        """Largest number of positives in S."""
        return int(self.batch_size_per_image * self.positive_fraction)

    def keys(self, labels: Tensor) -> Tensor:
        """A random number for each candidate; the largest are drawn."""
        return torch.rand(labels.shape, device=labels.device)

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Labels [N] of each image, as of :meth:`sample` -> uint8 [N] of each: the positives drawn, the negatives."""
        positives: list[Tensor] = []
        negatives: list[Tensor] = []
        for labels in matched_idxs:
            indices, positive, valid = (values[0] for values in self.sample(labels[None]))
            for drawn, rows in ((positives, positive), (negatives, valid & ~positive)):
                drawn.append(torch.zeros_like(labels, dtype=torch.uint8).index_fill_(0, indices[rows], 1))
        return positives, negatives

    def sample(self, labels: Tensor) -> Sample:
        """Labels [B, N]: 1 and up positive, 0 negative, below never drawn -> S of each image, or N if that is less."""
        keys = self.keys(labels)
        size = min(self.batch_size_per_image, labels.shape[1])
        positive, positive_at = torch.where(labels >= 1, keys, -1).topk(min(self.max_positives(), size), dim=1)
        negative, negative_at = torch.where(labels == 0, keys, -1).topk(size, dim=1)
        num_positive = (positive >= 0).sum(1, keepdim=True)
        room = torch.arange(size, device=labels.device) < self.batch_size_per_image - num_positive
        drawn = torch.cat(((positive >= 0), (negative >= 0) & room), dim=1)
        order = (~drawn).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        indices = torch.cat((positive_at, negative_at), dim=1).gather(1, order)
        valid = drawn.gather(1, order)
        return Sample(indices, valid & (order < positive.shape[1]), valid)


def match_boxes(matcher: Matcher, boxes: Tensor, candidates: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Match candidates to instances by the IoU of their boxes, in parts of bounded memory; values as :func:`match`'s.

    On the CPU image by image and without padding; elsewhere the whole batch at once, unless it is crowded.

    Args:
        matcher: assigns by IoU.
        boxes: [B, G, 4] of the instances.
        candidates: boxes [B, N, 4], or [1, N, 4] for all images.
        valid: bool [B, G], False for padding.
    """
    if not is_readable(valid):
        return _match_parts(matcher, boxes, candidates, valid)
    rows = candidates.expand(len(boxes), -1, -1)
    numbers = valid.sum(1).clamp(min=1).tolist()
    images = [
        _match_parts(matcher, boxes[i : i + 1, :num], rows[i : i + 1], valid[i : i + 1, :num])
        for i, num in enumerate(numbers)
    ]
    matched, state = (torch.cat(parts) for parts in zip(*images, strict=True))
    return matched, state


def _match_parts(matcher: Matcher, boxes: Tensor, candidates: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    batch, num = valid.shape
    most = MOST_PAIRS_ON_CPU if is_readable(valid) else MOST_PAIRS
    parts = count_parts(num, batch * num * candidates.shape[1], most)
    if parts == 1:
        return match(matcher, box_iou(boxes, candidates), valid)
    best = None
    for i in range(parts):
        first, end = i * num // parts, (i + 1) * num // parts
        iou = mask_padding(box_iou(boxes[:, first:end], candidates), valid[:, first:end])
        later = matcher.find_best(iou)
        best = later if best is None else best.join(later, first)
    assert best is not None
    return split_matches(matcher.decide(best))


def count_parts(rows: int, elements: int, most: int) -> int:
    """Parts that rows are computed in, each of about so many elements; powers of two, so that few are ever compiled."""
    parts = 1
    while elements > parts * most and rows >= 2 * parts:
        parts *= 2
    return parts


def match(matcher: Matcher, iou: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Match by IoU [B, G, N] with instances of which some are valid [B, G] -> matched instance and state, [B, N] each.

    The instance is 0 where there is none; the state is 1 for a match, 0 for background, -1 for neither.
    """
    return split_matches(matcher(mask_padding(iou, valid)))


def mask_padding(iou: Tensor, valid: Tensor) -> Tensor:
    """IoU [B, G, N], -1 where an instance is not valid [B, G]."""
    return iou.masked_fill(~valid[:, :, None], -1)


def split_matches(matches: Tensor) -> tuple[Tensor, Tensor]:
    """A matcher's output [B, N] -> see :func:`match`."""
    state = torch.where(matches >= 0, 1, torch.where(matches == Matcher.BELOW_LOW_THRESHOLD, 0, -1))
    return matches.clamp(min=0), state
