"""Keypoints of a category: their names, the limbs that join them, and which change places in a mirrored image."""

import re
from typing import NamedTuple

Pair = tuple[int, int]  # indices of two keypoints, from 0
SIDES = (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"), ("l", "r"), ("L", "R"))
OTHER_SIDE = {side: other for left, right in SIDES for side, other in ((left, right), (right, left))}
SIDE = re.compile(  # a word of a name: left_eye, eye-right, L_Eye, leftEye, eyeLeft
    r"(?<![A-Za-z])(left|right|Left|Right|LEFT|RIGHT|l|r|L|R)(?![a-z])|(?<=[a-z])(Left|Right)(?![a-z])"
)


class Skeleton(NamedTuple):
    """The K keypoints of a category."""

    number: int  # K
    names: tuple[str, ...] = ()  # K names, or none
    limbs: tuple[Pair, ...] = ()  # lines between keypoints, for drawing
    pairs: tuple[Pair, ...] | None = None  # left and right; None: as the names say, see find_pairs

    def find_pairs(self) -> tuple[Pair, ...]:
        """The keypoints that change places in a mirrored image: the given ones, or names alike but for left and right.

        17 keypoints without names are taken for COCO's.
        """
        if self.pairs is not None:
            return self.pairs
        if not self.names:
            return PERSON.find_pairs() if self.number == PERSON.number else ()
        others = [_find(mirror_name(name), self.names) for name in self.names]
        return tuple((place, other) for place, other in enumerate(others) if other is not None and place < other)

    def mirror_order(self) -> list[int]:
        """The K indices of the keypoints after mirroring: each has the place of its pair's other one."""
        order = list(range(self.number))
        for first, second in self.find_pairs():
            order[first], order[second] = second, first
        return order

    def find_one_sided(self) -> list[str]:
        """Names of a side, left or right, whose other side is missing; none where pairs are given."""
        paired = {place for pair in self.find_pairs() for place in pair}
        names = () if self.pairs is not None else self.names
        return [name for place, name in enumerate(names) if place not in paired and mirror_name(name) != name]


def mirror_name(name: str) -> str:
    """A name with left for right, and right for left."""
    return SIDE.sub(lambda match: OTHER_SIDE[match[0]], name)


def _find(name: str, names: tuple[str, ...]) -> int | None:
    return names.index(name) if name in names else None


def choose_limbs(skeleton: Skeleton | None, number: int) -> tuple[Pair, ...]:
    """The limbs to draw between so many keypoints: the skeleton's, or COCO's between 17 without any."""
    if skeleton is not None and skeleton.number == number and skeleton.limbs:
        return skeleton.limbs
    return PERSON.limbs if number == PERSON.number else ()


# COCO's persons: https://cocodataset.org/#keypoints-2020
NAMES = "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist"
NAMES += " right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
LIMBS = "15-13 13-11 16-14 14-12 11-12 5-11 6-12 5-6 5-7 6-8 7-9 8-10 1-2 0-1 0-2 1-3 2-4 3-5 4-6"
ENDS = [limb.split("-") for limb in LIMBS.split()]
PERSON = Skeleton(17, tuple(NAMES.split()), tuple((int(first), int(second)) for first, second in ENDS))
