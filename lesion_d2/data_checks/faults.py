"""The kinds of faults, their meaning, and the places where they were found."""

import heapq
from collections import Counter
from dataclasses import asdict, dataclass
from typing import NamedTuple

from ..utils.files import one_line

#: Maximum number of places kept per kind.
MAX_PLACES = 20

ERROR, WARNING = "error", "warning"


class Kind(NamedTuple):
    """A kind of fault: its severity and meaning."""

    severity: str
    meaning: str


#: All kinds by name, in the order of reports. An error spoils a training or an evaluation.
KINDS: dict[str, Kind] = {
    "refused": Kind(ERROR, "the loader refuses it: a training would not start"),
    "bad_record": Kind(ERROR, "an image's dict lacks what a training reads, or has it wrong"),
    "missing_file": Kind(ERROR, "there is no such file"),
    "unreadable_file": Kind(ERROR, "the file cannot be decoded"),
    "image_size": Kind(ERROR, "the file has another size than its annotations say"),
    "volume_sizes": Kind(ERROR, "slices of one volume differ in size"),
    "blank_lesion_image": Kind(ERROR, "an image with a lesion has one value everywhere"),
    "gray_levels": Kind(ERROR, "gray levels, 0 to 255 or of hardly any range, are no HU"),
    "no_offset": Kind(ERROR, "stored values without their offset: air is 0 and water near 1024"),
    "no_tissue": Kind(ERROR, "all is air: an offset was subtracted twice, or nothing is shown"),
    "bad_spacing": Kind(ERROR, "the spacing is not three numbers of mm from 0.01 to 100"),
    "bad_box": Kind(ERROR, "a box without area, or not of four finite numbers in a known mode"),
    "box_outside": Kind(ERROR, "a box lies outside of its image"),
    "unknown_class": Kind(ERROR, "the category is none of the data set's classes"),
    "bad_mask": Kind(ERROR, "a mask is empty, of another size, or not in COCO's run lengths"),
    "mask_box": Kind(ERROR, "a mask and its box disagree"),
    "lesions_on_air": Kind(ERROR, "one lesion in ten or more lies on air: boxes are misplaced"),
    "image_in_two_splits": Kind(ERROR, "two splits have an image with the same pixels"),
    "patient_in_two_splits": Kind(ERROR, "two splits have images of the same patient"),
    "classes_differ": Kind(ERROR, "splits have other lists of classes"),
    "class_not_trained": Kind(ERROR, "the training split lacks a class that another split has"),
    "no_lesion": Kind(ERROR, "a split has no lesion"),
    "class_missing": Kind(WARNING, "a split lacks a class that another one has, or all lack it"),
    "lesion_on_air": Kind(WARNING, "there is only air where a lesion should be"),
    "box_overhang": Kind(WARNING, "a box reaches past its image's border"),
    "tiny_box": Kind(WARNING, "a box has a side below 2 pixels"),
    "repeated_lesion": Kind(WARNING, "the same lesion is annotated twice"),
    "odd_lesion_size": Kind(WARNING, "a lesion is far larger or smaller than all others"),
    "split_sizes": Kind(WARNING, "lesions of two splits differ threefold in median size"),
    "image_sizes": Kind(WARNING, "images differ fourfold in size"),
    "odd_spacing": Kind(WARNING, "pixels are not square, or no CT scanner has such a spacing"),
    "mixed_spacing": Kind(WARNING, "slices of one volume differ in spacing"),
    "upside_down": Kind(WARNING, "bones lie above the body's center: prone, or rows are flipped"),
    "odd_orientation": Kind(WARNING, "axes are not left, posterior and inferior"),
    "in_no_split": Kind(WARNING, "a patient is in none of the splits"),
    "no_air": Kind(WARNING, "nothing is below -300 HU: a crop within the body, or no HU"),
    "blank_image": Kind(WARNING, "an image without a lesion has one value everywhere"),
    "duplicate_image": Kind(WARNING, "images have the same pixels, and are not of two splits"),
}


@dataclass(frozen=True)
class Fault:
    """The faults of one kind that were found.

    Args:
        kind: its name in :data:`~lesion_d2.data_checks.faults.KINDS`.
        severity: "error" or "warning".
        count: number of occurrences.
        meaning: description of the kind.
        places: the first 20 places, one line each: place, found, expected.
        images: numbers of the images at these places, if a place is an image.
    """

    kind: str
    severity: str
    count: int
    meaning: str
    places: tuple[str, ...]
    images: tuple[int, ...] = ()

    def to_json(self) -> dict:
        """The entry in ``data_check.json``."""
        values = asdict(self)
        del values["images"]  # only valid within one call
        return {**values, "places": list(self.places)}


class FaultLog:
    """Counts faults, and keeps the first places of each kind, independent of the order of calls.

    Args:
        warnings: kinds that are downgraded from errors to warnings.
    """

    def __init__(self, warnings: tuple[str, ...] = ()):
        self._warnings = warnings
        self._counts: Counter[str] = Counter()
        self._heaps: dict[str, list[tuple]] = {}

    def add(self, kind: str, place: str, number: int | None = None) -> None:
        """Add a fault.

        Args:
            kind: its name.
            place: place, found, expected; converted to one line.
            number: number of the image; None if it does not concern one image.
        """
        self._counts[kind] += 1
        order = self._counts[kind] if number is None else number
        # The smallest orders stay: heapq keeps its least item at the front, so all are negated.
        # File names on disk may not be UTF-8; pages and terminals refuse surrogates of such bytes.
        place = one_line(place).encode("utf-8", "backslashreplace").decode("utf-8")
        item = (-order, -self._counts[kind], place, number)
        heap = self._heaps.setdefault(kind, [])
        if len(heap) < MAX_PLACES:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)

    def rename(self, kind: str, other: str) -> None:
        """Make all faults of a kind faults of another."""
        self._counts[other] = self._counts.pop(kind)
        self._heaps[other] = self._heaps.pop(kind)

    def count(self, kind: str) -> int:
        """Number of faults of a kind."""
        return self._counts[kind]

    def faults(self) -> tuple[Fault, ...]:
        """All faults, errors first, in the order of :data:`KINDS`."""
        found = [self._fault(kind) for kind in KINDS if self._counts[kind]]
        return tuple(sorted(found, key=lambda fault: fault.severity != ERROR))

    def _fault(self, kind: str) -> Fault:
        severity, meaning = KINDS[kind]
        items = sorted(self._heaps[kind], key=lambda item: (-item[0], -item[1]))
        return Fault(
            kind,
            "warning" if kind in self._warnings else severity,
            self._counts[kind],
            meaning,
            tuple(item[2] for item in items),
            tuple(dict.fromkeys(item[3] for item in items if item[3] is not None)),
        )
