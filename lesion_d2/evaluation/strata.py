"""Ground truth as arrays, and the strata of the FROC table."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..structures.boxes import annotation_boxes
from ..structures.ignore_regions import lesions_of, region_boxes
from ..structures.lesion_types import COARSE_TYPES


@dataclass(frozen=True, eq=False)
class Truth:
    """M lesions on I images of a data set as NumPy arrays, in the order of images."""

    image_ids: list
    boxes: list[np.ndarray]  # I arrays M_i x 4, X1Y1X2Y2 in pixels
    patients: np.ndarray  # I, index of the image's patient in 0..P-1
    spacing_z: np.ndarray  # I, slice interval in mm; NaN if unknown
    diameters: np.ndarray  # M, long diameter in mm; NaN if unknown
    types: np.ndarray  # M, coarse type 1..8; -1 if unknown
    regions: list[np.ndarray]  # I arrays m_i x 4 likewise, regions to ignore

    @classmethod
    def from_dicts(cls, dicts: Sequence[Mapping], name: str = "data set") -> "Truth":
        """Convert Detectron2 dicts; ``name`` is used in messages.

        ``patient``, ``spacing``, ``diameters_mm`` and ``coarse_type`` may be missing, as in data
        sets other than DeepLesion, and ``spacing`` may be None: strata that need them are then
        empty, and an image without ``patient`` counts as its own patient.

        Raises:
            ValueError: no dict, or two dicts with the same ``image_id``.
        """
        if len(dicts) == 0:
            raise ValueError(f"{name}: found no images, expected at least one")
        image_ids = [d["image_id"] for d in dicts]
        for image_id in _repeated(image_ids):
            raise ValueError(f"{name}: found image_id {image_id!r} twice, expected once")
        annotations = [a for d in dicts for a in lesions_of(d.get("annotations", ()))]
        owners = [("patient", d["patient"]) if "patient" in d else d["image_id"] for d in dicts]
        numbers = {owner: i for i, owner in enumerate(dict.fromkeys(owners))}
        return cls(
            image_ids=image_ids,
            boxes=[annotation_boxes(lesions_of(d.get("annotations", ()))) for d in dicts],
            patients=np.array([numbers[owner] for owner in owners]),
            spacing_z=_floats(_spacing_z(d) for d in dicts),
            diameters=_floats(a.get("diameters_mm", [math.nan])[0] for a in annotations),
            types=np.array([a.get("coarse_type", -1) for a in annotations], dtype=int),
            regions=list(map(region_boxes, dicts)),
        )

    @property
    def num_patients(self) -> int:
        """P, number of patients."""
        return int(self.patients.max()) + 1

    @cached_property
    def lesion_images(self) -> np.ndarray:
        """(M,) index of each lesion's image."""
        return np.repeat(np.arange(len(self.boxes)), [len(boxes) for boxes in self.boxes])


@dataclass(frozen=True, eq=False)
class Stratum:
    """A subset of the lesions, and the images whose false positives count."""

    task: str  # first key of its results, such as "froc_size"
    key: str  # prefix of its metrics, such as "under_10mm"
    label: str  # name in tables, such as "< 10 mm"
    lesions: np.ndarray  # M bool
    images: np.ndarray  # I bool


def make_strata(truth: Truth) -> list[Stratum]:
    """All lesions, then by size, coarse type and slice interval (Tao et al., Table 2).

    Size and type are properties of a lesion: false positives on all images count, as a detector has
    one threshold for all lesions. The slice interval is a property of an image: only lesions and
    false positives on the stratum's images count. Size is the long diameter: < 10, 10-30 and > 30
    mm (Zlocha et al., section 3.2). The papers split intervals into "< 2.5" and "> 2.5 mm"; here
    exactly 2.5 mm counts as thin. A lesion or image with an unknown property is in no stratum of
    that property.
    """
    all_images = np.ones(len(truth.boxes), dtype=bool)
    all_lesions = np.ones(len(truth.lesion_images), dtype=bool)
    size, thickness = truth.diameters, truth.spacing_z
    strata = [Stratum("froc", "", "all lesions", all_lesions, all_images)]
    for key, label, lesions in (
        ("under_10mm", "< 10 mm", size < 10),
        ("10_to_30mm", "10-30 mm", (size >= 10) & (size <= 30)),
        ("over_30mm", "> 30 mm", size > 30),
    ):
        strata.append(Stratum("froc_size", key, label, lesions, all_images))
    for number, name in enumerate(COARSE_TYPES, start=1):
        key, lesions = name.replace(" ", "_"), truth.types == number
        strata.append(Stratum("froc_type", key, name, lesions, all_images))
    for key, label, images in (
        ("up_to_2.5mm", "interval <= 2.5 mm", thickness <= 2.5),
        ("over_2.5mm", "interval > 2.5 mm", thickness > 2.5),
    ):
        lesions = images[truth.lesion_images]
        strata.append(Stratum("froc_interval", key, label, lesions, images))
    return strata


def _spacing_z(image: Mapping) -> float:
    spacing = image.get("spacing")
    return math.nan if spacing is None else spacing[-1]


def _floats(values) -> np.ndarray:
    return np.array(list(values), dtype=np.float64)


def _repeated(values: Sequence) -> list:
    return [value for value, count in Counter(values).items() if count > 1]
