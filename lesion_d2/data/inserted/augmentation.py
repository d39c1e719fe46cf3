"""Lesions inserted into the slices of training images, as an augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from ...structures.boxes import xyxy_box
from ...structures.rle import encode_mask
from ...utils.values import is_whole
from .boxes import box_pixels, margin_box
from .hosts import HOSTS
from .painting import LIMITS, insert_lesions

_KEY = "INPUT.INSERTED_LESIONS"
_FREE = 3.0  # minimum distance in mm between annotated and inserted lesions


class LesionInserter:
    """Paints synthetic lesions into slices and annotates them.

    Lesions are painted into the slices as read from disk, before clipping and interpolation, so
    that images are the same as if the files contained the lesions. Like Detectron2's augmentations,
    it uses NumPy's global random state.

    One or two lesions take 27 ms of CPU time, in addition to 12 ms for the rest of a one-slice
    sample, and 43 ms in addition to 26 ms for three slices (512 x 512 pixels of 0.75 mm, or of 0.3
    to 0.7 mm). Samples without inserted lesions take no extra time.

    Args:
        probability: probability of inserting lesions into an image, if there is room.
        max_lesions: maximum number of lesions per image, at least 1.
        types: coarse types to sample from.
        categories: one class for all types, or the classes of the coarse types 1..8.
        median_diameter, mottle_hu: see :func:`~lesion_d2.data.inserted.insert_lesions`.
        box_margin: see :func:`~lesion_d2.data.inserted.boxes.margin_box`.

    Raises:
        ValueError: a value is invalid; the message names its key.
    """

    def __init__(
        self,
        probability: float,
        *,
        max_lesions: int = 2,
        types: Sequence[int] = tuple(HOSTS),
        categories: Sequence[int] = (0,),
        median_diameter: float = 16.0,
        mottle_hu: float = 5.0,
        box_margin: float = 5.0,
    ):
        _check("PROBABILITY", probability, 0 <= probability <= 1, "0 to 1")
        numbers = {
            "MAX_LESIONS": max_lesions,
            "MEDIAN_DIAMETER": median_diameter,
            "MOTTLE_HU": mottle_hu,
        }
        for key, value in numbers.items():
            low, high = LIMITS[key.lower()]
            _check(key, value, low <= value <= high, f"{low} to {high}")
        _check("TYPES", types, set(types) <= set(HOSTS), f"some of {sorted(HOSTS)}, () for all")
        is_right = len(categories) in (1, 8) and all(is_whole(c) and c >= 0 for c in categories)
        _check("CATEGORIES", categories, is_right, "one class for all types, or eight")
        self.probability, self.max_lesions = probability, max_lesions
        self.types = tuple(types) or tuple(HOSTS)
        self.categories = tuple(categories) * (8 if len(categories) == 1 else 1)
        self.median_diameter, self.mottle_hu = median_diameter, mottle_hu
        self.box_margin = box_margin

    def is_drawn(self) -> bool:
        """Sample whether lesions are inserted into an image."""
        return np.random.uniform() < self.probability

    def __call__(
        self,
        dataset_dict: Mapping[str, Any],
        known: Sequence[Mapping],
        inserted: list[dict],
        slices: dict[int, np.ndarray],
        key: int,
    ) -> None:
        """Paint lesions into the slices of an image.

        Args:
            dataset_dict: the image's dict.
            known: its annotations; their lesions are not painted over.
            inserted: list that one annotation per lesion is appended to: ``bbox``, ``bbox_mode``,
                ``category_id``, ``coarse_type``, ``recist`` and, from its true mask,
                ``segmentation``.
            slices: number -> H x W int16 HU, modified in place.
            key: number of the key slice.

        Raises:
            ValueError: the spacing is unknown.
        """
        spacing = dataset_dict["spacing"]
        if spacing is None:
            raise ValueError(
                f"{dataset_dict['file_name']}: found no spacing, expected one for sizes in mm "
                f"({_KEY}.PROBABILITY)"
            )
        rng = np.random.default_rng(np.random.randint(2**31, size=4))
        numbers, pixel = sorted(slices), float(np.mean(spacing[:2]))
        stack = np.stack([slices[number] for number in numbers])
        taken = np.zeros(stack.shape[1:], bool)
        for annotation in known:
            taken |= box_pixels(xyxy_box(annotation), taken.shape, _FREE / pixel)
        found = insert_lesions(
            stack,
            [(number - key) * spacing[2] for number in numbers],
            pixel,
            rng,
            number=int(rng.integers(1, self.max_lesions + 1)),
            types=self.types,
            median_diameter=self.median_diameter,
            mottle_hu=self.mottle_hu,
            taken=dict.fromkeys(range(len(stack)), taken),
        )
        for lesion in found:
            mask = lesion.masks[numbers.index(key)]
            inserted.append(self._annotation(lesion.coarse_type, mask))
        for number, hu in zip(numbers, stack, strict=True):
            slices[number][:] = hu

    def _annotation(self, coarse_type: int, mask: np.ndarray) -> dict:
        box, recist = margin_box(mask, self.box_margin)
        height, width = mask.shape
        return {
            "bbox": np.clip(box, -0.5, np.array([width, height] * 2) - 0.5).tolist(),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": self.categories[coarse_type - 1],
            "coarse_type": coarse_type,
            "recist": list(recist),
            "segmentation": encode_mask(mask),
        }


def build_lesion_inserter(cfg) -> LesionInserter | None:
    """Build and check the inserter of INPUT.INSERTED_LESIONS; None if it is disabled."""
    options = cfg.INPUT.INSERTED_LESIONS
    inserter = LesionInserter(
        options.PROBABILITY,
        max_lesions=options.MAX_LESIONS,
        types=options.TYPES,
        categories=options.CATEGORIES,
        median_diameter=options.MEDIAN_DIAMETER,
        mottle_hu=options.MOTTLE_HU,
        box_margin=cfg.INPUT.BOX_MARGIN,
    )
    return inserter if options.PROBABILITY else None


def _check(key: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ValueError(f"{_KEY}.{key}: found {value}, expected {expected}")
