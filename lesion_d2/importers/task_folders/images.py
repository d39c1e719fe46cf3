"""Images of task folders, volumes or single slices, and their values as HU."""

import argparse
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.slices.pictures import open_picture, read_picture
from ...data.volume_set.form import Volume
from ...scans.itk import ITK_FORMATS, is_itk, open_itk
from ...scans.nifti import NIFTI_ENDINGS, is_nifti, open_nifti
from ...scans.scan import Scan
from ...scans.volume_file import VolumeFile

PICTURE_ENDINGS = (".png", ".tif", ".tiff")
#: Of files that :func:`open_image` reads.
IMAGE_ENDINGS = (*NIFTI_ENDINGS[::-1], *ITK_FORMATS, *PICTURE_ENDINGS)

_INT16 = np.iinfo(np.int16)
_PERCENTILES = (0.5, 99.5)
_PICTURE = "picture"  # format of what has no place in the patient
# Corners of two grids that differ by less are the same: NIfTI's qform and sform have few digits.
_TOLERANCE = 0.1  # of a voxel


@dataclass(frozen=True)
class Values:
    """What the values of images stand for; HU as they are by default, at most one of these.

    Args:
        hu_offset: HU = value - hu_offset.
        hu_window: HU of the lowest and the highest value that unsigned integers of the file's type
            can have, 0 and 255 of 8 bits.
        percentiles_to_hu: for images that are no CT: HU that the percentiles 0.5 and 99.5 of each
            image become; what lies beyond is cut.
    """

    hu_offset: int | None = None
    hu_window: tuple[float, float] | None = None
    percentiles_to_hu: tuple[float, float] | None = None

    def __post_init__(self):
        given = [name for name, value in self.as_options().items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"found {' and '.join(given)}, expected one of them")
        for name in ("hu_window", "percentiles_to_hu"):
            pair = getattr(self, name)
            if pair is not None and not _INT16.min <= pair[0] < pair[1] <= _INT16.max:
                raise ValueError(f"{name}: found {pair}, expected HU, the lower ones first")

    def as_options(self) -> dict:
        """For ``Listing.options``."""
        return {
            "hu_offset": self.hu_offset,
            "hu_window": self.hu_window,
            "percentiles_to_hu": self.percentiles_to_hu,
        }

    @property
    def are_told(self) -> bool:
        """Whether one of the three is given."""
        return any(value is not None for value in self.as_options().values())

    def read(self, image: VolumeFile) -> tuple[np.ndarray, tuple[str, ...]]:
        """Read an image.

        Returns:
            (Z, H, W) int16, HU, in DeepLesion's orientation; and what has to be told of the image,
            a line each.

        Raises:
            ValueError: the file is damaged; it has values that are not finite, or none below 0
                though they are to be HU; ``hu_window`` is for other types than the file's.
        """
        if not self.are_told:
            scan = _read_hu(image)
            return scan.volume, tuple(f"{image.file}: {line}" for line in scan.messages)
        values = read_array(image)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{image.file}: found values that are no finite numbers")
        scale, shift, low, high = self._line_of(image.file, values)
        volume = np.empty(values.shape, np.int16)
        for target, source in zip(volume, values, strict=True):  # a slice at a time, in float64
            hu = np.clip(source.astype(float), low, high) * scale + shift
            target[:] = np.rint(np.clip(hu, _INT16.min, _INT16.max))
        return volume, tuple(f"{image.file}: {line}" for line in image.messages)

    def _line_of(self, file: str, values: np.ndarray) -> tuple[float, float, float, float]:
        """Scale and shift to HU, and the values that count, from the lowest to the highest."""
        if self.hu_offset is not None:
            return 1.0, -self.hu_offset, -np.inf, np.inf
        if self.hu_window is not None:
            if values.dtype.kind != "u" or values.dtype.itemsize > 2:
                raise ValueError(
                    f"{file}: found values of {values.dtype}, expected uint8 or uint16 for an HU "
                    "window"
                )
            low, high, ends = 0, np.iinfo(values.dtype).max, self.hu_window
        else:
            low, high = np.percentile(values, _PERCENTILES)
            ends = self.percentiles_to_hu
            if low == high:
                raise ValueError(f"{file}: found the value {low:g} alone, expected an image")
        scale = (ends[1] - ends[0]) / (float(high) - float(low))
        return scale, ends[0] - scale * float(low), low, high


def add_value_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`Values`; :func:`values_of` reads them."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--hu-offset",
        type=int,
        metavar="N",
        help="HU = value - N; 1024 for values from 0 to 4095, 0 for HU of a modality that is not "
        "named CT",
    )
    group.add_argument(
        "--hu-window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="HU of the lowest and the highest value of 8 or 16 bits, such as -160 240",
    )
    group.add_argument(
        "--percentiles-to-hu",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="for images that are not CT: HU to which percentiles 0.5 and 99.5 of each are mapped",
    )


def values_of(args: argparse.Namespace) -> Values:
    """The options that :func:`add_value_arguments` added."""
    pairs = {name: getattr(args, name) for name in ("hu_window", "percentiles_to_hu")}
    return Values(args.hu_offset, **{n: pair and tuple(pair) for n, pair in pairs.items()})


def image_stem(name: str) -> str | None:
    """A file's name without the ending of an image; None where it has no such ending."""
    lower = name.lower()
    for ending in IMAGE_ENDINGS:
        if lower.endswith(ending) and not name.startswith("."):
            return name[: -len(ending)]
    return None


def image_stems(folder: str | os.PathLike) -> dict[str, str]:
    """The images of a folder, by their names without endings, sorted; none where it is missing."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else ()
    return {stem: name for name in names if (stem := image_stem(name)) is not None}


def labels_alone(folder: str | os.PathLike, cases: Collection[str]) -> list[str]:
    """Lines that tell of label maps without an image.

    Args:
        folder: of the label maps, ``labelsTr`` or ``labelsTs``.
        cases: names of those that have images.
    """
    images = Path(folder).name.replace("labels", "images")
    return [
        f"{Path(folder) / name}: found no image of this case in {images}, expected {stem}_0000 "
        "and an ending"
        for stem, name in image_stems(folder).items()
        if stem not in cases
    ]


def open_image(file: str | os.PathLike, channel: tuple[int, int] | None = None) -> VolumeFile:
    """Read the header of an image: NIfTI, MetaImage, NRRD, or one slice in a PNG or TIFF.

    Args:
        file: its path.
        channel: of a file that has all modalities along its fourth axis, which one, from 0, and how
            many there are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, is no volume or slice of numbers, or its slices have one row or
            column.
        ImportError: of MetaImage and NRRD, SimpleITK is not installed.
    """
    if is_nifti(file):
        opened = open_nifti(file, channel=channel, allow_flat=True)
    elif channel is not None and channel[1] > 1:
        raise ValueError(f"{file}: found no NIfTI file, expected one of {channel[1]} modalities")
    elif is_itk(file):
        opened = open_itk(file)
    else:
        opened = _open_picture(file)
    depth, height, width = opened.shape
    if min(height, width) == 1 < depth:
        raise ValueError(
            f"{file}: found {depth} slices of {width} x {height} pixels, expected an image of one "
            "slice to lie across the patient by its affine matrix"
        )
    return opened


def has_place(image: VolumeFile) -> bool:
    """Whether an image's file says its spacing and its place in the patient; a picture does not."""
    return image.format != _PICTURE


def read_array(image: VolumeFile) -> np.ndarray:
    """Read an image's values as the file has them, in the orientation of a scan.

    Returns:
        (Z, H, W), numbers of any type.

    Raises:
        ValueError: the file is damaged.
    """
    array, target, start = None, None, 0
    for slab in image.slabs():
        slab = slab.reshape(*slab.shape[:2], -1)
        if array is None:
            array = np.empty(image.shape, slab.dtype)
            target = image.grid.turn.undo(array)
        target[:, :, start : start + slab.shape[2]] = slab
        start += slab.shape[2]
    return array


def volume_of(image: VolumeFile, values: Values, name: str, patient: str) -> Volume:
    """An image's volume, without lesions; the window of its values is its window in pictures."""
    place = {"window": values.hu_window}
    if has_place(image):
        place |= {
            "spacing": image.spacing,
            "origin": tuple(image.origin.tolist()),
            "direction": tuple(image.direction.ravel().tolist()),
        }
    return Volume(name, patient, f"images/{name}", image.shape, **place)


def check_same_grid(label: VolumeFile, image: VolumeFile, *, by_voxel: bool = False) -> None:
    """Stop where a label map does not lie on its image.

    Args:
        label, image: their files, in whatever order of axes.
        by_voxel: whether equal sizes are enough.

    Raises:
        ValueError: their sizes differ, or a corner of one lies a tenth of a voxel or more from the
            other's.
    """
    if label.shape != image.shape:
        raise ValueError(
            f"{label.file}: found {_size(label.shape)}, expected the {_size(image.shape)} of "
            f"{os.path.basename(image.file)}"
        )
    if by_voxel or not (has_place(label) and has_place(image)):
        return
    distance = np.linalg.norm(_corners(label) - _corners(image), axis=1).max()
    if not distance < _TOLERANCE * min(image.spacing):
        raise ValueError(
            f"{label.file}: found corners {distance:.3g} mm from those of "
            f"{os.path.basename(image.file)}, expected the same place in the patient "
            "(--labels-by-voxel takes voxel for voxel)"
        )


def find_image(folder: str | os.PathLike, stem: str) -> str | None:
    """The image ``<folder>/<stem><ending>``; None where there is none.

    Raises:
        ValueError: there are several.
    """
    found = [path for end in IMAGE_ENDINGS if (path := Path(folder) / f"{stem}{end}").is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"{folder}: found {names}, expected one of them")
    return str(found[0]) if found else None


def _read_hu(image: VolumeFile) -> Scan:
    """An image whose values are HU."""
    options = "--hu-offset, --hu-window or --percentiles-to-hu says what other values mean"
    if image.format == _PICTURE and open_picture(image.file).kind.startswith("u"):
        raise ValueError(
            f"{image.file}: found values of {open_picture(image.file).kind}, which may mean any "
            f"HU: {options}"
        )
    try:
        return image.read()
    except ValueError as error:
        hint = f"; {options}" if "expected HU, which are below 0" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None


def _open_picture(file: str | os.PathLike) -> VolumeFile:
    height, width = open_picture(file).size
    return VolumeFile(
        file,
        _PICTURE,
        (width, height, 1),
        np.eye(4),
        lambda: iter([read_picture(file).T[..., None]]),
    )


def _size(shape: Sequence[int]) -> str:
    depth, height, width = shape
    return f"{depth} slices of {width} x {height} pixels"


def _corners(image: VolumeFile) -> np.ndarray:
    """Centers of the eight corner voxels, (8, 3) LPS mm."""
    last = np.subtract(image.shape[::-1], 1)
    points = np.array(list(np.ndindex(2, 2, 2))) * last * image.spacing
    return image.origin + points @ image.direction.T
