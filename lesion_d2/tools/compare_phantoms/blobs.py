"""A detector without training: blobs of the Laplacian of Gaussian.

If blobs find the lesions of a data set, it is too easy to compare detectors on it.
"""

import numpy as np
from scipy.ndimage import gaussian_laplace, maximum_filter

#: Standard deviations of the Gaussians, pixels: blobs of 6 to 51 pixels across.
SIGMAS = tuple(2.0 * 1.25**step for step in range(10))
_WINDOW = (-300.0, 400.0)  # HU range of soft tissue, to which values are clipped
_APART = 3  # minimum distance of two maxima, pixels
_LIMIT = 100  # maximum number of blobs per slice


def find_blobs(hu: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Dark and bright blobs of a slice (Lindeberg, IJCV 30, 1998).

    A blob is a maximum of sigma^2 |Laplacian of Gaussian| over both directions and ``SIGMAS``. Its
    radius is sqrt(2) sigma.

    Args:
        hu: (H, W), HU.
        margin: of boxes around blobs, pixels on each side.

    Returns:
        boxes (N, 4), X1Y1X2Y2 in pixels, and scores (N,), descending; at most 100.
    """
    clipped = np.clip(hu, *_WINDOW).astype(np.float32)
    space = np.stack([s**2 * np.abs(gaussian_laplace(clipped, s)) for s in SIGMAS])
    around = (3, 2 * _APART + 1, 2 * _APART + 1)
    level, y, x = np.nonzero((space == maximum_filter(space, around)) & (space > 0))
    scores = space[level, y, x]
    best = np.argsort(-scores, kind="stable")[:_LIMIT]
    reach = np.sqrt(2) * np.array(SIGMAS)[level[best]] + margin
    x, y = x[best], y[best]
    boxes = np.stack([x - reach, y - reach, x + reach, y + reach], axis=1)
    return boxes, scores[best]
