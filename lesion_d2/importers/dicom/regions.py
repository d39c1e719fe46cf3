"""Regions in DICOM objects: names, and masks on a scan."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...scans import Scan
from ...scans.dicom.files import describe, is_dicom, quiet, read_dataset
from ...scans.limits import require
from ...utils.files import one_line, printable
from ..polygons import polygon_mask

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
#: Modalities of files of regions.
MODALITIES = ("SEG", "RTSTRUCT")
_KIND = ["SOPClassUID", "Modality"]
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_MAX_NAME = 200
_MAX_MM = 1e5
_OFF_GRID = 0.25  # maximum offset in voxels
_MAX_VOXELS = 4  # voxels of a segmentation per voxel of its series


@dataclass(frozen=True)
class RegionFile:
    """A structure set or a segmentation.

    Args:
        file: its path.
        is_structure_set: True for a structure set, False for a segmentation.
        series_uids: the series that it refers to.
        names: number -> name of each region.
    """

    file: str
    is_structure_set: bool
    series_uids: tuple[str, ...]
    names: dict[int, str]


def read_region_file(file: Path) -> RegionFile | None:
    """Read a file without contours and pixels; returns None for other files.

    Raises:
        ValueError: a damaged structure set or segmentation, or a surface segmentation.
    """
    with quiet(), open(file, "rb") as opened:
        if not is_dicom(opened):
            return None
        try:
            kind = read_dataset(opened, specific_tags=_KIND, stop_before_pixels=True)
            sop_class, modality = map(kind.get, _KIND)
        except Exception:  # pydicom raises errors of any kind
            return None  # the listing of series reports damaged files
        is_regions = sop_class in (STRUCTURE_SET, *SEGMENTATIONS)
        if not is_regions and modality not in MODALITIES:
            return None
        opened.seek(0)
        try:
            if not is_regions:
                raise ValueError(f"{modality} with the unsupported SOP class {sop_class}")
            dataset = read_dataset(opened, stop_before_pixels=True)
            is_structure_set = dataset.SOPClassUID == STRUCTURE_SET
            series = _series_of_structures if is_structure_set else _series_of_segments
            names = _roi_names if is_structure_set else _segment_names
            uids = tuple(dict.fromkeys(map(str, series(dataset))))
            return RegionFile(str(file), is_structure_set, uids, names(dataset))
        except Exception as error:
            raise ValueError(
                f"{file}: found a damaged file of regions ({describe(error)})"
            ) from None


def region_masks(
    file: RegionFile, numbers: Iterable[int], scan: Scan
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the masks of regions on their scan: number, (Z, H, W) bool; some are empty.

    Raises:
        ValueError: the file is damaged, or its regions do not lie on the scan's slices or grid.
    """
    masks = _structure_masks if file.is_structure_set else _segment_masks
    try:
        with quiet():
            yield from masks(file.file, numbers, scan)
    except Exception as error:  # pydicom and highdicom raise any kind of error for damaged files
        text = describe(error)
        raise ValueError(text if text.startswith(file.file) else f"{file.file}: {text}") from None


def _structure_masks(
    file: str, numbers: Iterable[int], scan: Scan
) -> Iterator[tuple[int, np.ndarray]]:
    with open(file, "rb") as opened:
        dataset = read_dataset(opened)
    contours = {
        int(item.ReferencedROINumber): item.get("ContourSequence") or ()
        for item in dataset.get("ROIContourSequence") or ()
    }
    names = _roi_names(dataset)
    for number in numbers:
        mask = np.zeros(scan.volume.shape, bool)
        for contour in contours.get(number, ()):
            if contour.get("ContourGeometricType") not in _CLOSED:
                continue
            try:
                index, points = _on_slice(np.array(contour.ContourData, float), scan)
            except (TypeError, ValueError) as error:
                raise ValueError(f"region {names[number]!r}: {one_line(error)}") from None
            mask[index] ^= polygon_mask(points, mask.shape[1:])
        yield number, mask


def _on_slice(data: np.ndarray, scan: Scan) -> tuple[int, np.ndarray]:
    """The slice of a contour, and its points x, y in pixels."""
    if data.size < 9 or data.size % 3 or not (np.abs(data) < _MAX_MM).all():
        raise ValueError(
            f"found a contour of {data.size} numbers, expected x, y, z in mm of 3 or more points"
        )
    points = scan.from_patient(data.reshape(-1, 3))
    index = int(np.rint(points[:, 2].mean()))
    if np.abs(points[:, 2] - index).max() > _OFF_GRID or not 0 <= index < len(scan.volume):
        low, high = points[:, 2].min(), points[:, 2].max()
        raise ValueError(
            f"found a contour from slice {low:.2f} to {high:.2f}, expected it on one of the "
            f"scan's {len(scan.volume)} slices"
        )
    return index, points[:, :2]


def _segment_masks(
    file: str, numbers: Iterable[int], scan: Scan
) -> Iterator[tuple[int, np.ndarray]]:
    segmentation = require("highdicom").seg.segread(file)
    if segmentation.SegmentationType == "FRACTIONAL":
        raise ValueError("found a FRACTIONAL segmentation, expected BINARY or LABELMAP")
    geometry = segmentation.get_volume_geometry()  # None if get_volume would refuse it
    if geometry is not None and math.prod(geometry.spatial_shape) > _MAX_VOXELS * scan.volume.size:
        found, expected = (
            " x ".join(map(str, s)) for s in (geometry.spatial_shape, scan.volume.shape)
        )
        raise ValueError(f"found a segmentation of {found} voxels, expected {expected} or fewer")
    for number in numbers:
        mask = np.zeros(scan.volume.shape, bool)
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=False)
        voxels = np.argwhere(volume.array[..., 0])
        if len(voxels):
            mask[tuple(_on_grid(voxels, volume.affine, scan).T)] = True
        yield number, mask


def _on_grid(voxels: np.ndarray, affine: np.ndarray, scan: Scan) -> np.ndarray:
    """Map voxels of a segmentation to z, y, x of the scan, (N, 3) int.

    Args:
        voxels: (N, 3) int.
        affine: 4 x 4, from voxels of the segmentation to LPS in mm.
    """
    ends = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    origin, *axes = scan.from_patient(ends @ affine[:3, :3].T + affine[:3, 3])[:, ::-1]
    steps = np.array(axes) - origin
    found = voxels @ steps + origin
    indices = np.rint(found).astype(int)
    is_grid = np.allclose(np.sort(np.abs(steps)), (0, 0, 1), atol=_OFF_GRID / 10)
    if not is_grid or np.abs(found - indices).max() > _OFF_GRID:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        raise ValueError(
            f"found a segmentation with voxels of {' x '.join(f'{n:g}' for n in spacing[::-1])} mm "
            "on another grid, expected that of its series, "
            f"{' x '.join(f'{n:g}' for n in scan.spacing)} mm"
        )
    if (indices < 0).any() or (indices >= scan.volume.shape).any():
        raise ValueError(
            "found voxels of a segmentation outside of its series, expected them inside"
        )
    return indices


def _roi_names(dataset) -> dict[int, str]:
    return {
        int(item.ROINumber): _name(item.get("ROIName"))
        for item in dataset.get("StructureSetROISequence") or ()
    }


def _segment_names(dataset) -> dict[int, str]:
    return {
        int(item.SegmentNumber): _name(item.get("SegmentLabel")) for item in dataset.SegmentSequence
    }


def _series_of_structures(dataset) -> Iterator[str]:
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                yield series.SeriesInstanceUID


def _series_of_segments(dataset) -> Iterator[str]:
    for series in dataset.get("ReferencedSeriesSequence") or ():
        yield series.SeriesInstanceUID


def _name(found: object) -> str:
    return printable(found or "")[:_MAX_NAME]
