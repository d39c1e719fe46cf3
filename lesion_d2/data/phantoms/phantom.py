"""Phantom data sets: synthetic CT in DeepLesion's layout on disk, with true masks.

All values in them are random, none is measured: they are for tests and demonstrations of the whole
pipeline, from files to an FROC curve, without the real data set. Unlike in DeepLesion, every lesion
that is visible on a key slice is annotated.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ...scans.png import write_png
from ...structures.recist import measure_recist, recist_box, recist_lengths
from ...utils.files import atomic_write, write_json
from ...utils.parallel import count_cores, map_with_progress
from ..deeplesion.csv_rows import CSV_COLUMNS
from ..generated import LATER, check_options, write_data_set
from .anatomy import Body, paint_body, sample_body
from .lesions import (
    LESION_TYPES,
    Distractor,
    Lesion,
    LesionType,
    sample_lesion,
)
from .scanner import sample_clinical_scanner, sample_scanner
from .shapes import Canvas
from .tissues import sample_clinical_tissues, sample_tissues

FORMAT_VERSION = 2
# Version of the clinical appearance; data sets of another version are not reused.
CLINICAL_VERSION = 2
# Minimum size and contrast (HU without noise) of a lesion on its key slice.
MIN_PIXELS, MIN_CONTRAST = 8, {"mottled": 25.0, "clinical": 15.0}
TORSO = 600.0  # mm, of a body of average height
# Slice spacings in mm, their probabilities, and the number of heights that a slice averages over.
SPACINGS, SPACING_SHARES, SUBSLICES = (1, 2, 5), (0.4, 0.2, 0.4), {1: 1, 2: 1, 5: 2}
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)
MAX_DRIFT = 0.15  # largest shift of a distractor along x and y, mm per mm of height


@dataclass(frozen=True)
class PhantomOptions:
    """Options that determine a phantom data set's content; stored in its ``phantom.json``."""

    num_patients: int = 140
    size: int = 256
    seed: int = 0
    extent_mm: float = 2.0
    median_diameter: float = 27.0
    mottle_hu: float = 60.0
    format_version: int = FORMAT_VERSION
    distractors: float = field(default=0.0, metadata=LATER)
    appearance: str = field(default="mottled", metadata=LATER)
    clinical_version: int = field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        if self.appearance not in ("mottled", "clinical"):
            raise ValueError(
                f"phantom option appearance: found {self.appearance!r}, "
                "expected 'mottled' or 'clinical'"
            )
        limits = {
            "num_patients": (3, 99999),
            "size": (64, 2048),
            "seed": (0, 2**32 - 1),
            "extent_mm": (0, 60),
            "median_diameter": (5, 40),
            "mottle_hu": (0, 100),
            "distractors": (0, 10),
        }
        check_options("phantom", self, limits)

    @property
    def is_clinical(self) -> bool:
        """Whether slices look as on clinical CT."""
        return self.appearance == "clinical"


PRESETS = {
    "quickstart-v1": PhantomOptions(),
    "full": PhantomOptions(num_patients=200, size=512, extent_mm=20.0, median_diameter=16.0),
    "columns": PhantomOptions(extent_mm=14.0, median_diameter=18.0, distractors=2.0),
    "clinical": PhantomOptions(
        num_patients=100, size=512, median_diameter=16.0, mottle_hu=5.0, appearance="clinical"
    ),
}


def write_phantom(
    root: str | Path,
    *,
    num_patients: int = 140,
    size: int = 256,
    seed: int = 0,
    extent_mm: float = 2.0,
    median_diameter: float = 27.0,
    mottle_hu: float = 60.0,
    distractors: float = 0.0,
    appearance: str = "mottled",
    workers: int | None = None,
    overwrite: bool = False,
) -> bool:
    """Write a phantom data set in DeepLesion's layout, atomically.

    ``root`` then holds ``Images_png``, ``DL_info.csv``, ``true_masks.json`` (COCO RLE of every
    lesion on its key slice by image id and CSV line, for evaluation only), ``true_volumes.json``
    (boxes and masks over all slices) and ``phantom.json`` (these options). The same options give
    the same bytes for any number of workers.

    Args:
        root: the data set's folder; a temporary folder beside it is renamed at the end.
        num_patients: split into about 70 / 15 / 15 % for training, validation and test; each has 3
            to 5 key slices.
        size: width and height of every slice in pixels.
        seed: random seed.
        extent_mm: minimum extent of slices on both sides of a key slice.
        median_diameter: median lesion diameter in mm.
        mottle_hu: texture of lesions in HU; lower values are harder to detect.
        distractors: mean number per key slice, if there is room. A distractor looks like a lesion
            on the key slice, but continues through all slices and is not annotated.
        appearance: "mottled" lesions have sharp edges and a strong texture; "clinical" lesions,
            their surroundings and the noise look like real CT, see :mod:`.looks`.
        workers: number of processes; by default one per core, up to 16.
        overwrite: replace a data set that was written with other options.

    Returns:
        True if the data set was written, False if it existed with the same options.

    Raises:
        ValueError: an option is out of range.
        FileExistsError: if ``root`` holds a phantom data set with other options and ``overwrite``
            is not set, or anything other than a phantom data set.
    """
    options = PhantomOptions(
        num_patients,
        size,
        seed,
        float(extent_mm),
        float(median_diameter),
        float(mottle_hu),
        distractors=float(distractors),
        appearance=appearance,
        clinical_version=CLINICAL_VERSION if appearance == "clinical" else 0,
    )
    if workers is not None and workers < 1:
        raise ValueError(f"phantom option workers: found {workers}, expected 1 or more")
    workers = workers or min(16, count_cores())
    write = partial(_write_all, options=options, workers=workers)
    return write_data_set(root, "phantom", options, write, overwrite=overwrite)


def _write_all(root: Path, options: PhantomOptions, workers: int) -> None:
    splits = assign_splits(options.num_patients, options.seed)
    (root / "Images_png").mkdir()
    work = partial(_write_patient, root / "Images_png", options)
    patients = range(1, options.num_patients + 1)
    bar = {"desc": "Phantom patients", "unit": "patient"}
    with map_with_progress(work, patients, workers, **bar) as results:
        groups = dict(results)
    records = [record for patient in patients for record in groups[patient]]
    masks: dict[str, dict[str, dict]] = {}
    volumes = []
    table = root / "DL_info.csv"
    with atomic_write(table, flush=False) as path, open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for line, (row, slices) in enumerate(records, start=2):  # line 1 is the header
            row["Train_Val_Test"] = splits[row["Patient_index"]]
            writer.writerow([row[column] for column in CSV_COLUMNS])
            image_id = row["File_name"].removesuffix(".png")
            masks.setdefault(image_id, {})[str(line)] = slices[row["Key_slice_index"]]
            volumes.append({"image_id": image_id, "row": line, **_volume(slices, row)})
    for name, content in (("true_masks.json", masks), ("true_volumes.json", volumes)):
        write_json(root / name, content, flush=False)


def assign_splits(num_patients: int, seed: int) -> dict[int, int]:
    """Split of every patient (1 train, 2 val, 3 test): about 70 / 15 / 15 %, at least one each."""
    order = np.random.default_rng([seed, 0]).permutation(num_patients) + 1
    held_out = max(1, round(0.15 * num_patients))
    splits = dict.fromkeys(range(1, num_patients + 1), 1)
    splits.update(dict.fromkeys(order[:held_out].tolist(), 2))
    splits.update(dict.fromkeys(order[held_out : 2 * held_out].tolist(), 3))
    return splits


def _volume(slices: dict[int, dict], row: dict) -> dict:
    """Box and masks of one lesion over all its slices."""
    boxes = np.array([coco_mask.toBbox(rle) for rle in slices.values()])
    (x1, y1), (x2, y2) = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    first, last = min(slices), max(slices)
    ends = [int(v) for v in row["Slice_range"].split(",")]
    return {
        "box3d": [x1, y1, first, x2, y2, last],
        "cut_off": first == ends[0] or last == ends[1],
        "masks": {str(z): rle for z, rle in slices.items()},
    }


def _write_patient(
    folder: Path, options: PhantomOptions, patient: int
) -> tuple[int, list[tuple[dict, dict]]]:
    """Write one patient's series; returns the patient, and CSV row and {slice: RLE} per lesion."""
    rng = np.random.default_rng([options.seed, patient])
    body = sample_body(rng, options.is_clinical)
    person = {"Patient_gender": "FM"[rng.integers(2)], "Patient_age": int(rng.integers(20, 88))}
    records = []
    for study in range(1, int(rng.integers(3, 6)) + 1):
        series = Series(rng, body, options)
        name = f"{patient:06d}_{study:02d}_01"
        slices = series.write(rng, folder / name)
        names = {"Patient_index": patient, "Study_index": study, "Series_ID": 1}
        for row, masks in series.describe(name, slices):
            records.append(({**row, **names, **person}, masks))
    return patient, records


class Series:
    """One CT series around one key slice.

    Args:
        rng: random generator.
        body: the patient.
        options: options of the data set.
    """

    def __init__(self, rng: np.random.Generator, body: Body, options: PhantomOptions):
        self.body, self.options = body, options
        self.spacing = int(rng.choice(SPACINGS, p=SPACING_SHARES))
        clinical = options.is_clinical
        self.tissues = (sample_clinical_tissues if clinical else sample_tissues)(rng)
        sample = sample_clinical_scanner if clinical else sample_scanner
        self.scanner = sample(rng, self.spacing)
        self.padding = int(rng.choice([-3024, -2000])) if rng.random() < 0.3 else None
        self.lesions: list[Lesion] = []
        self.distractors: list[Distractor] = []
        while not self.lesions:
            kind = LESION_TYPES[rng.choice(len(LESION_TYPES), p=[k.share for k in LESION_TYPES])]
            self._choose_view(rng, kind)
            self._place_lesions(rng, kind)
        self.window = kind.window

    def _choose_view(self, rng: np.random.Generator, kind: LesionType) -> None:
        """Choose the key slice, and a field of view that the body fills."""
        z = rng.uniform(*kind.heights) * self.body.scale[2]
        self.key = max(round(z / self.spacing), 1 + self.reach)
        z = self.key * self.spacing
        half = self.body.half_widths(z)[0] + self.body.wall(z) + self.body.fat
        size = self.options.size
        self.pixel = round(2 * half * rng.uniform(*self.scanner.fields) / size, 6)
        painted = self.scanner.painted_size(size)
        pixel = np.float32(self.pixel * size / painted)
        grid = (np.arange(painted, dtype=np.float32) - (painted - 1) / 2) * pixel
        shift = rng.uniform(-4, 4, 2).astype(np.float32)
        self.x, self.y = grid + shift[0], grid + shift[1]

    @property
    def reach(self) -> int:
        """Number of slices on each side of the key slice."""
        return int(np.ceil(self.options.extent_mm / self.spacing))

    def paint(self, index: int) -> list[Canvas]:
        """Paint the body without lesions at the heights that one slice averages over."""
        count = SUBSLICES[self.spacing]
        heights = index + (np.arange(count) + 0.5) / count - 0.5
        return [
            paint_body(self.body, self.x, self.y, float(height) * self.spacing, self.tissues)
            for height in heights
        ]

    def _place_lesions(self, rng: np.random.Generator, kind: LesionType) -> None:
        """Fill ``lesions`` with up to three on the key slice, and fill ``distractors``."""
        number = num_lesions = int(rng.choice([1, 2, 3], p=[0.68, 0.22, 0.1]))
        if self.options.distractors:  # no draw: data sets without them do not change
            number += int(rng.poisson(self.options.distractors))
        placed = self._place(rng, kind, number)
        is_lesion = np.full(number, True)
        if number > num_lesions:  # chosen last, so that size and location do not give them away
            is_lesion = rng.permutation(number) < num_lesions
        pairs = list(zip(placed, is_lesion, strict=False))
        self.lesions = [lesion for lesion, ends in pairs if ends]
        self.distractors = [
            Distractor(
                lesion,
                float(self.key * self.spacing),
                float(self.spacing),
                tuple(rng.uniform(-MAX_DRIFT, MAX_DRIFT, 2).tolist()),
            )
            for lesion, ends in pairs
            if not ends
        ]

    def _place(self, rng: np.random.Generator, kind: LesionType, number: int) -> list[Lesion]:
        """Up to ``number`` lesions on the key slice, the first one of this type."""
        placed: list[Lesion] = []
        limit = MIN_CONTRAST[self.options.appearance]
        canvases = self.paint(self.key)
        taken = self._outside(0.94)
        height = self.key * self.spacing / self.body.scale[2]
        others = [k for k in LESION_TYPES if k.heights[0] <= height <= k.heights[1]]
        share = np.array([k.share * (3 if k is kind else 1) for k in others])
        for i in range(number):
            chosen = kind if i == 0 else others[rng.choice(len(others), p=share / share.sum())]
            size, mottle = self.options.median_diameter, self.options.mottle_hu
            lesion = sample_lesion(
                rng, chosen, canvases[0], taken, size, mottle, clinical=self.options.is_clinical
            )
            if lesion is None:
                break
            before = _mean_hu(canvases)
            cover = np.mean([lesion.paint(canvas) for canvas in canvases], axis=0)
            change = np.abs(_mean_hu(canvases) - before)[cover > 0.5]
            if len(change) < MIN_PIXELS or change.mean() < limit:
                break
            placed.append(lesion)
            reach = int(12 / canvases[0].pixel)
            taken |= cv2.dilate(cover, np.ones((2 * reach + 1,) * 2, np.uint8)) > 0
        return placed

    def _outside(self, share: float = 1.0) -> np.ndarray:
        """Painted pixels beyond a share of the reconstruction radius; H x W bool."""
        away = np.hypot(self.x - self.x.mean(), (self.y - self.y.mean())[:, None])
        return away > share * self.pixel * self.options.size / 2

    def write(self, rng: np.random.Generator, folder: Path) -> dict[int, list[np.ndarray]]:
        """Write all slices as PNG; returns the lesions' masks (H x W bool) on every slice."""
        folder.mkdir()
        masks, size = {}, self.options.size
        outside = self.scanner.enlarge(self._outside().astype(np.float32), size) > 0.5
        for index in range(self.key - self.reach, self.key + self.reach + 1):
            hu, masks[index] = self.render(index, self.lesions)
            hu = hu + self.scanner.make_noise(rng, size, self.pixel)
            if self.padding is not None:
                hu[outside] = self.padding
            pixels = np.rint(hu.clip(-3024, 3071) + 32768).astype(np.uint16)
            write_png(folder / f"{index:03d}.png", pixels, _PNG, flush=False)
        return masks

    def render(self, index: int, lesions: list[Lesion]) -> tuple[np.ndarray, list[np.ndarray]]:
        """HU without noise (H x W float32) of one slice with these lesions, and their masks.

        Distractors are always included. A thick slice is the mean over several heights, which
        models the partial volume effect.
        """
        canvases = self.paint(index)
        for distractor in self.distractors:
            for canvas in canvases:
                distractor.paint(canvas)
        covers = [np.mean([x.paint(canvas) for canvas in canvases], axis=0) for x in lesions]
        size = self.options.size
        hu = self.scanner.enlarge(_mean_hu(canvases), size)
        return hu, [self.scanner.enlarge(cover, size) > 0.5 for cover in covers]

    def describe(self, name: str, slices: dict[int, list[np.ndarray]]):
        """Yield a CSV row (without the patient's columns) and {slice: RLE} for every lesion."""
        size = self.options.size
        for i, lesion in enumerate(self.lesions):
            mask = slices[self.key][i]
            recist = [float(f"{value:.6g}") for value in measure_recist(mask)]
            x, y = np.array(recist).reshape(4, 2).T
            height = self.key * self.spacing / (TORSO * self.body.scale[2])
            row = {
                "File_name": f"{name}_{self.key:03d}.png",
                "Key_slice_index": self.key,
                "Measurement_coordinates": _join(recist),
                "Bounding_boxes": _join(recist_box(recist)),
                "Lesion_diameters_Pixel_": _join(recist_lengths(recist)),
                "Normalized_lesion_location": _join((x.mean() / size, y.mean() / size, height)),
                "Coarse_lesion_type": lesion.kind.coarse_type,
                "Possibly_noisy": 0,
                "Slice_range": _join((min(slices), max(slices))),
                "Spacing_mm_px_": _join((self.pixel, self.pixel, self.spacing)),
                "Image_size": _join((size, size)),
                "DICOM_windows": _join(self.window),
            }
            rles = {}
            for index, masks in slices.items():
                if masks[i].any():
                    rle = coco_mask.encode(np.asfortranarray(masks[i], dtype=np.uint8))
                    rles[index] = {"size": rle["size"], "counts": rle["counts"].decode()}
            yield row, rles


def _mean_hu(canvases: list[Canvas]) -> np.ndarray:
    return np.mean([canvas.hu for canvas in canvases], axis=0)


def _join(values) -> str:
    """Join numbers as in a column of DeepLesion's CSV file: six digits, comma and space."""
    return ", ".join(f"{value:.6g}" for value in values)
