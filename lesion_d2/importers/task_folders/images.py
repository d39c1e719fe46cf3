"""Images of task folders (volumes or single slices), and the conversion of their values to HU."""

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
#: Extensions of files that :func:`open_image` reads.
IMAGE_ENDINGS = (*NIFTI_ENDINGS[::-1], *ITK_FORMATS, *PICTURE_ENDINGS)

_INT16 = np.iinfo(np.int16)
_PERCENTILES = (0.5, 99.5)
_PICTURE = "picture"  # format of images without a position in the patient
# Two grids are the same if their corners differ by less: NIfTI's qform and sform are rounded.
_TOLERANCE = 0.1  # in voxels


@dataclass(frozen=True)
class Values:
    """Conversion of values to HU, with at most one of these options; by default, values are HU.

    Args:
        hu_offset: HU = value - hu_offset.
        hu_window: HU of the lowest and highest value of the file's unsigned integer type, such as 0
            and 255 for 8 bits.
        percentiles_to_hu: for images other than CT: HU to which the percentiles 0.5 and 99.5 of
            each image are mapped; values beyond these are clipped.
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
                raise ValueError(f"{name}: found {pair}, expected two HU, low < high")

    def as_options(self) -> dict:
        """For ``Listing.options``."""
        return {
            "hu_offset": self.hu_offset,
            "hu_window": self.hu_window,
            "percentiles_to_hu": self.percentiles_to_hu,
        }

    @property
    def are_told(self) -> bool:
        """Whether one of the options is given."""
        return any(value is not None for value in self.as_options().values())

    def read(self, image: VolumeFile) -> tuple[np.ndarray, tuple[str, ...]]:
        """Read an image.

        Returns:
            (Z, H, W) int16 HU in DeepLesion's orientation, and messages about the image, one line
            each.

        Raises:
            ValueError: the file is damaged, has infinite values or NaN, has no values below 0
                although no option is given, or its type does not match ``hu_window``.
        """
        if not self.are_told:
            scan = _read_hu(image)
            return scan.volume, tuple(f"{image.file}: {line}" for line in scan.messages)
        values = read_array(image)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{image.file}: found infinite values or NaN, expected finite numbers")
        scale, shift, low, high = self._line_of(image.file, values)
        volume = np.empty(values.shape, np.int16)
        for target, source in zip(volume, values, strict=True):  # one slice at a time, in float64
            hu = np.clip(source.astype(float), low, high) * scale + shift
            target[:] = np.rint(np.clip(hu, _INT16.min, _INT16.max))
        return volume, tuple(f"{image.file}: {line}" for line in image.messages)

    def _line_of(self, file: str, values: np.ndarray) -> tuple[float, float, float, float]:
        """Scale and shift to HU, and the lowest and highest value; others are clipped."""
        if self.hu_offset is not None:
            return 1.0, -self.hu_offset, -np.inf, np.inf
        if self.hu_window is not None:
            if values.dtype.kind != "u" or values.dtype.itemsize > 2:
                raise ValueError(
                    f"{file}: found values of {values.dtype}, expected uint8 or uint16 for "
                    "--hu-window"
                )
            low, high, ends = 0, np.iinfo(values.dtype).max, self.hu_window
        else:
            low, high = np.percentile(values, _PERCENTILES)
            ends = self.percentiles_to_hu
            if low == high:
                raise ValueError(f"{file}: found {low:g} in nearly all voxels, expected an image")
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
    """The parsed options of :func:`add_value_arguments`."""
    pairs = {name: getattr(args, name) for name in ("hu_window", "percentiles_to_hu")}
    return Values(args.hu_offset, **{n: pair and tuple(pair) for n, pair in pairs.items()})


def image_stem(name: str) -> str | None:
    """A file name without the extension of an image; None if it has no such extension."""
    lower = name.lower()
    for ending in IMAGE_ENDINGS:
        if lower.endswith(ending) and not name.startswith("."):
            return name[: -len(ending)]
    return None


def image_stems(folder: str | os.PathLike) -> dict[str, str]:
    """Name without extension -> name of a folder's images, sorted; empty if it does not exist."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else ()
    return {stem: name for name in names if (stem := image_stem(name)) is not None}


def labels_alone(folder: str | os.PathLike, cases: Collection[str]) -> list[str]:
    """One line for each label map without an image.

    Args:
        folder: folder of the label maps, ``labelsTr`` or ``labelsTs``.
        cases: names of the cases with images.
    """
    images = Path(folder).name.replace("labels", "images")
    return [
        f"{Path(folder) / name}: found no image of this case in {images}, expected {stem}_0000 "
        "with an extension"
        for stem, name in image_stems(folder).items()
        if stem not in cases
    ]


def open_image(file: str | os.PathLike, channel: tuple[int, int] | None = None) -> VolumeFile:
    """Read the header of an image: NIfTI, MetaImage, NRRD, or one slice in a PNG or TIFF.

    Args:
        file: path of the image.
        channel: for a file with all modalities along its fourth axis, the index of the modality,
            from 0, and the number of modalities.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, is not a numeric volume or slice, or its slices have only one row
            or column.
        ImportError: SimpleITK, which reads MetaImage and NRRD, is not installed.
    """
    if is_nifti(file):
        opened = open_nifti(file, channel=channel, allow_flat=True)
    elif channel is not None and channel[1] > 1:
        raise ValueError(f"{file}: found no NIfTI file, expected one with {channel[1]} modalities")
    elif is_itk(file):
        opened = open_itk(file)
    else:
        opened = _open_picture(file)
    depth, height, width = opened.shape
    if min(height, width) == 1 < depth:
        raise ValueError(
            f"{file}: found {depth} slices of {width} x {height} pixels, expected a single "
            "slice to be axial according to its affine matrix"
        )
    return opened


def has_place(image: VolumeFile) -> bool:
    """Whether an image has a spacing and a position in the patient; PNG and TIFF do not."""
    return image.format != _PICTURE


def read_array(image: VolumeFile) -> np.ndarray:
    """Read the unconverted values of an image, in DeepLesion's orientation.

    Returns:
        (Z, H, W) array of the file's type.

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
    """The :class:`Volume` of an image, without lesions; ``hu_window`` is its display window."""
    place = {"window": values.hu_window}
    if has_place(image):
        place |= {
            "spacing": image.spacing,
            "origin": tuple(image.origin.tolist()),
            "direction": tuple(image.direction.ravel().tolist()),
        }
    return Volume(name, patient, f"images/{name}", image.shape, **place)


def check_same_grid(label: VolumeFile, image: VolumeFile, *, by_voxel: bool = False) -> None:
    """Check that a label map and its image have the same grid.

    Args:
        label, image: the opened files, with axes in any order.
        by_voxel: only compare sizes.

    Raises:
        ValueError: their sizes differ, or their corners are a tenth of a voxel or more apart.
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
            f"{os.path.basename(image.file)}, expected the same position "
            "(--labels-by-voxel ignores positions)"
        )


def find_image(folder: str | os.PathLike, stem: str) -> str | None:
    """The image ``<folder>/<stem><extension>``; None if there is none.

    Raises:
        ValueError: there are several.
    """
    found = [path for end in IMAGE_ENDINGS if (path := Path(folder) / f"{stem}{end}").is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"{folder}: found {names}, expected one of them")
    return str(found[0]) if found else None


def _read_hu(image: VolumeFile) -> Scan:
    """Read an image whose values are HU."""
    options = "other values need --hu-offset, --hu-window or --percentiles-to-hu"
    if image.format == _PICTURE and open_picture(image.file).kind.startswith("u"):
        raise ValueError(
            f"{image.file}: found {open_picture(image.file).kind} values, expected HU as int16 or "
            f"float32; {options}"
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
    """Centers of the eight corner voxels, (8, 3) LPS in mm."""
    last = np.subtract(image.shape[::-1], 1)
    points = np.array(list(np.ndindex(2, 2, 2))) * last * image.spacing
    return image.origin + points @ image.direction.T
