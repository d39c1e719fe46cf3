from dataclasses import replace

from lesion_d2.data.volume_set.diameters import with_diameters
from lesion_d2.data.volume_set.form import Lesion, Volume, lesion_of_mask

import numpy as np
import pytest
from skimage.measure import regionprops

SHAPE = (3, 40, 60)


def test_diameters_are_those_of_the_largest_slice():
    y, x = np.mgrid[:40, :60]
    mask = np.stack(
        [((x - 30) / (10 * s)) ** 2 + ((y - 20) / (10 * s)) ** 2 < 1 for s in (0.5, 1, 0.8)]
    )
    lesion = lesion_of_mask(1, 0, mask)
    volume = Volume("a", "p", "a.b2nd", SHAPE, (0.5, 1.0, 2.0), lesions=(lesion,))
    (measured,) = with_diameters(volume).lesions
    long, short = measured.diameters_mm  # 20 rows of 1 mm, 20 columns of 0.5 mm
    (region,) = regionprops(mask[1].astype(int), spacing=(1.0, 0.5))
    assert long == pytest.approx(region.axis_major_length, abs=1)
    assert short == pytest.approx(region.axis_minor_length, abs=0.75)
    assert replace(measured, diameters_mm=None) == lesion

    assert with_diameters(replace(volume, spacing=None)).lesions == (lesion,)


def test_what_is_known_stays_and_boxes_alone_have_none():
    pixel = np.zeros(SHAPE, bool)
    pixel[1, 4, 5] = True
    known = replace(lesion_of_mask(1, 0, pixel), diameters_mm=(9.0, 4.0))
    box = Lesion(2, 0, (1.0, 1.0, 0.0, 5.0, 5.0, 1.0))
    small = lesion_of_mask(3, 0, pixel)
    volume = Volume("a", "p", "a.b2nd", SHAPE, (0.7, 0.7, 2.0), lesions=(known, box, small))
    lesions = with_diameters(volume).lesions
    assert lesions[:2] == (known, box)
    long, short = lesions[2].diameters_mm
    assert 0 < short <= long <= 1.0

    damaged = replace(small, masks={1: "0"})
    with pytest.raises(ValueError, match="found an RLE mask of 0 pixels"):
        with_diameters(replace(volume, lesions=(damaged,)))
