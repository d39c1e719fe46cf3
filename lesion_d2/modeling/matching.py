"""What is shared by the matching of anchors with lesions."""

from torch import Tensor


def unmatch_untouched(matches: Tensor, labels: Tensor, overlaps: Tensor) -> None:
    """Make background of anchors that are matched with a lesion that they do not touch; in place.

    Detectron2's ``Matcher``, where it allows low-quality matches, takes for positive all anchors
    that have the highest IoU with a lesion. Where that is 0, because the lesion is small and lies
    between all anchors, they are nearly all there are.

    Args:
        matches: (R,) indices of lesions, of the matcher.
        labels: (R,) 1 for a match, 0 for background, -1 for what does not count.
        overlaps: (n, R) IoU of lesions and anchors; n may be 0.
    """
    if len(overlaps) > 0:
        untouched = overlaps.gather(0, matches[None])[0] == 0
        labels.masked_fill_(untouched & (labels == 1), 0)
