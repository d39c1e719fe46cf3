"""Shared code for the matching of anchors with lesions."""

from torch import Tensor


def unmatch_untouched(matches: Tensor, labels: Tensor, overlaps: Tensor) -> None:
    """Label anchors as background if they do not overlap their matched lesion, in place.

    With low-quality matches, Detectron2's ``Matcher`` labels all anchors with the highest IoU with
    a lesion as positive. If that IoU is 0, because a small lesion lies between all anchors, these
    are almost all anchors.

    Args:
        matches: (R,) indices of lesions from the matcher.
        labels: (R,) 1 for a match, 0 for background, -1 for ignored anchors.
        overlaps: (n, R) IoU of lesions and anchors; n may be 0.
    """
    if len(overlaps) > 0:
        untouched = overlaps.gather(0, matches[None])[0] == 0
        labels.masked_fill_(untouched & (labels == 1), 0)
