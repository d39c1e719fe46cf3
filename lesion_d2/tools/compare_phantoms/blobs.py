"""How far a detector without training comes: blobs of the Laplacian of Gaussian.

Where blobs alone find lesions, a data set does not ask for more than a filter, and what is measured
on it says little about detectors.
"""

import numpy as np
from scipy.ndimage import gaussian_laplace, maximum_filter

#: Standard deviations of the Gaussians, pixels: blobs of 6 to 51 pixels across.
SIGMAS = tuple(2.0 * 1.25**step for step in range(10))
_WINDOW = (-300.0, 400.0)  # HU that are told apart: those of soft tissue
_APART = 3  # pixels at least between two maxima
_LIMIT = 100  # blobs of a slice


def find_blobs(hu: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Dark and bright blobs of a slice (Lindeberg, IJCV 30, 1998).

    A blob is a maximum of sigma^2 |Laplacian of Gaussian| over both directions and ``SIGMAS``. Its
    radius is sqrt(2) sigma.

    Args:
        hu: (H, W), HU.
        margin: pixels that its box is larger on each side.

    Returns:
        boxes (N, 4), X1Y1X2Y2 in pixels, and scores (N,), falling; at most 100.
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
