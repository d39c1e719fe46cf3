"""Measures of a whole data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lesion_d2.data.catalog import load_records
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.evaluation import FrocCurve, froc_curve
from lesion_d2.structures.ignore_regions import lesions_of
from lesion_d2.utils.parallel import map_with_progress
from lesion_d2.visualization import truth_boxes

import numpy as np

from .blobs import find_blobs
from .measures import LesionMeasures, SliceMeasures, measure_lesion, measure_slice

#: Rows of the table: name -> (slices or lesions, attribute, factor).
ROWS = {
    "body, % of the picture": ("slices", "body", 100.0),
    "table, % of the picture": ("slices", "table", 100.0),
    "fat, HU": ("slices", "fat", 1.0),
    "soft tissue, HU": ("slices", "soft", 1.0),
    "noise, HU": ("slices", "noise", 1.0),
    "noise, cycles a pixel": ("slices", "frequency", 1.0),
    "edge of the skin, pixels": ("slices", "skin", 1.0),
    "lesion: longer side, pixels": ("lesions", "side", 1.0),
    "lesion: HU inside": ("lesions", "inside", 1.0),
    "lesion: contrast, HU": ("lesions", "contrast", 1.0),
    "lesion: contrast without sign, HU": ("lesions", "size_of_contrast", 1.0),
    "lesion: unevenness, HU": ("lesions", "uneven", 1.0),
    "lesion: edge, pixels": ("lesions", "edge", 1.0),
}


@dataclass(frozen=True)
class DataSetMeasures:
    """The measures of a data set's slices and lesions.

    Attributes:
        slices: of each slice with a body.
        lesions: of each lesion that could be measured.
        examples: HU around some lesions, twice as wide as their boxes.
        blobs: FROC curve of :func:`~lesion_d2.tools.compare_phantoms.blobs.find_blobs` at an IoU of
            0.5.
    """

    slices: list[SliceMeasures]
    lesions: list[LesionMeasures]
    examples: list[np.ndarray]
    blobs: FrocCurve

    @property
    def histogram(self) -> np.ndarray:
        """Share of the body in each bin, averaged over slices."""
        return np.mean([s.histogram for s in self.slices], axis=0)

    @property
    def spectrum(self) -> np.ndarray | None:
        """Spectrum of the noise, averaged over slices."""
        known = [s.spectrum for s in self.slices if s.spectrum is not None]
        return np.mean(known, axis=0) if known else None

    def percentiles(self, row: str, at: Sequence[float] = (10, 50, 90)) -> list[float]:
        """The values of a row of the table; NaN without measurements."""
        kind, attribute, scale = ROWS[row]
        values = np.array([getattr(found, attribute) for found in getattr(self, kind)], float)
        values = scale * values[~np.isnan(values)]
        return np.percentile(values, at).tolist() if len(values) else [float("nan")] * len(at)


def measure_data_set(
    name: str, *, margin: float, limit: int, workers: int, seed: int = 0
) -> DataSetMeasures:
    """Measure a registered data set.

    Args:
        name: in ``DatasetCatalog``.
        margin: of boxes around lesions, pixels on each side.
        limit: maximum number of slices, drawn at random if there are more.
        workers: processes.
        seed: of the random selection.

    Raises:
        ValueError: no slice of the data set has a body.
    """
    records = load_records(name)
    if len(records) > limit:
        chosen = np.random.default_rng(seed).choice(len(records), limit, replace=False)
        records = [records[i] for i in np.sort(chosen)]
    work = partial(_measure_record, margin=margin)
    numbered = list(enumerate(records))
    with map_with_progress(work, numbered, workers, desc=name, unit="slice") as results:
        found = [result for _, result in sorted(results, key=lambda pair: pair[0])]
    slices = [measures for measures, *_ in found if measures is not None]
    if not slices:
        raise ValueError(f"data set {name!r}: found no slice with a body, expected one or more")
    lesions = [lesion for _, of_slice, _, _ in found for lesion in of_slice]
    crops = [crop for _, _, crops, _ in found for crop in crops]
    blobs, scores, truth = zip(*(of_blobs for *_, of_blobs in found), strict=True)
    return DataSetMeasures(slices, lesions, crops, froc_curve(blobs, scores, truth))


def _measure_record(numbered: tuple[int, dict], margin: float) -> tuple[int, tuple]:
    """Number and measures of the slice, its lesions, crops, and (blobs, their scores, boxes)."""
    number, record = numbered
    hu = read_slice(record["file_name"], (record["height"], record["width"])).astype(np.float32)
    annotations = lesions_of(record.get("annotations", ()))
    boxes = truth_boxes({"annotations": annotations}) if annotations else np.zeros((0, 4))
    lesions = [measure_lesion(hu, box, margin) for box in boxes]
    crops = [_crop(hu, box) for box in boxes]
    of_blobs = (*find_blobs(hu, margin), boxes)
    return number, (measure_slice(hu), [x for x in lesions if x is not None], crops, of_blobs)


def _crop(hu: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A square around a box's center, twice its longer side, clipped to the image."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    reach = max(box[2] - box[0], box[3] - box[1])
    y1, x1 = (max(int(v - reach), 0) for v in (y, x))
    return hu[y1 : int(y + reach) + 1, x1 : int(x + reach) + 1].copy()
