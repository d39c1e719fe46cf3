"""Connected components by flood fill."""

import itertools
from collections import deque


def slow_components(probabilities, max_components, margins):
    """Flood fill, pixel by pixel; margins of boxes along the image's axes."""
    best = probabilities.argmax(dim=0)
    sides = best.shape
    taken, found = set(), []
    for place in map(tuple, best.nonzero().tolist()):
        if place in taken:
            continue
        pixels, queue = [], deque([place])
        taken.add(place)
        while queue:
            pixels.append(queue.popleft())
            for step in itertools.product((-1, 0, 1), repeat=len(sides)):
                other = tuple(a + b for a, b in zip(pixels[-1], step, strict=True))
                inside = all(0 <= a < side for a, side in zip(other, sides, strict=True))
                if inside and other not in taken and best[other] == best[place]:
                    taken.add(other)
                    queue.append(other)
        low, high = [], []
        for along, side, margin in zip(zip(*pixels, strict=True), sides, margins, strict=True):
            low.insert(0, max(min(along) - margin, 0) - 0.5)
            high.insert(0, min(max(along) + 1 + margin, side) - 0.5)
        score = max(probabilities[(best[place], *pixel)].item() for pixel in pixels)
        found.append((len(pixels), score, best[place].item() - 1, (*low, *high), set(pixels)))
    found.sort(key=lambda f: -f[0])
    return sorted(found[:max_components], key=lambda f: -f[1])


def check_components(found, expected):
    """Detections with masks against those of :func:`slow_components`."""
    assert len(found) == len(expected)
    for i, (_, score, category, box, pixels) in enumerate(expected):
        assert found.scores[i].item() == score
        assert found.pred_classes[i].item() == category
        assert found.pred_boxes.tensor[i].tolist() == list(box)
        assert set(map(tuple, found.pred_masks[i].nonzero().tolist())) == pixels
