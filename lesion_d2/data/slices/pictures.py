"""Slices in pictures (PNG, TIFF, JPEG), and in volumes as stored (NIfTI, MetaImage, NRRD).

A slice has the path ``<file>#<coding>/<slice number>.png``, which does not exist on disk. The
coding defines the conversion of the file's values to HU::

    a.png#offset=32768/0.png        16 bits: HU = value - 32768
    a.jpg#window=-160.0,240.0/0.png 8 bits: 0 is -160 HU, and 255 is 240
    a.tif#hu/0.png                  signed or floating point: HU
    ct.nii.gz#stored/12.png         the slice [:, :, 12] of the file's array, as nibabel and ITK
                                    index it: the first index counts columns, the second one rows
"""

import os
import re
import struct
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from ...scans.itk import is_itk, open_itk
from ...scans.limits import check_picture_size
from ...scans.nifti import is_nifti, open_nifti
from ...scans.png import check_chunks, decode_grey
from ...scans.volume_file import VolumeFile
from ...utils.files import one_line
from ...utils.values import are_digits

_INT16 = np.iinfo(np.int16)
_FOLDER = re.compile(r"(.+)#(stored|hu|offset=-?\d+|window=[^,/#]+,[^,/#]+)", re.DOTALL)
_FORMATS = ("PNG", "TIFF", "JPEG")
_DEPTH = 24  # byte of a PNG file with its bit depth
_GREY = ("L", "I;16")
_KINDS = {1: "uint", 2: "int", 3: "float"}  # TIFF's sample formats
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_WHITE_IS_ZERO = 0
_MAX_VOLUMES = 4  # cached per process
# Exceptions that Pillow raises for damaged files.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    KeyError,
    TypeError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Picture:
    """A picture's header: height and width in pixels, and the NumPy name of its data type."""

    size: tuple[int, int]
    kind: str


# --- paths ----------------------------------------------------------------------------------------


def picture_path(
    file: str | os.PathLike,
    *,
    hu_offset: int | None = None,
    hu_window: tuple[float, float] | None = None,
    picture: Picture | None = None,
) -> str:
    """Return the slice path of a picture.

    Args:
        file: a PNG, TIFF or JPEG of one image.
        hu_offset: for 16-bit pictures: HU = value - hu_offset.
        hu_window: for 8-bit pictures: the HU of 0 and 255.
        picture: its header; None to read it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not such a picture, or has unsigned values and the required
            ``hu_offset`` or ``hu_window`` is missing.
    """
    kind = (picture or open_picture(file)).kind
    coding = "hu"
    if kind == "uint16":
        if hu_offset is None:
            raise ValueError(
                f"{file}: found 16-bit values with an unknown conversion to HU, expected hu_offset "
                "(--hu-offset): HU = value - hu_offset (32768 in DeepLesion's files)"
            )
        coding = f"offset={hu_offset}"
    elif kind == "uint8":
        if hu_window is None:
            raise ValueError(
                f"{file}: found 8-bit values with an unknown conversion to HU, expected hu_window "
                "(--hu-window): the HU of 0 and of 255"
            )
        coding = "window={!r},{!r}".format(*map(float, hu_window))
    return os.path.join(f"{os.fspath(file)}#{coding}", "0.png")


def stored_slice_path(file: str | os.PathLike, number: int) -> str:
    """Return the path of a volume's slice ``[:, :, number]``, see the module's docstring."""
    return os.path.join(f"{os.fspath(file)}#stored", f"{number}.png")


def is_stored_volume(file: str | os.PathLike) -> bool:
    """Whether a path is a volume file in one of the formats of :func:`stored_slice_path`."""
    return is_nifti(file) or is_itk(file)


def is_picture(folder: str | os.PathLike) -> bool:
    """Whether the folder part of a slice's path has the form of this module's paths."""
    return _FOLDER.fullmatch(os.path.basename(folder)) is not None


def picture_source(path: str | os.PathLike) -> tuple[str, int | None]:
    """Return the file of a slice's path, and the slice number; None for a picture."""
    folder, number = _split(path)
    file, coding = _parse(folder)
    return file, number if coding == "stored" else None


def picture_coding(path: str | os.PathLike) -> dict[str, int | list[float]]:
    """Return the ``hu_offset`` or ``hu_window`` of a slice's path; empty for HU."""
    name, _, numbers = _parse(_split(path)[0])[1].partition("=")
    if name == "offset":
        return {"hu_offset": int(numbers)}
    return {"hu_window": list(map(float, numbers.split(",")))} if name == "window" else {}


# --- slices ---------------------------------------------------------------------------------------


def picture_slices(folder: str | os.PathLike) -> dict[int, str]:
    """Slice number -> path for all slices of ``<file>#<coding>``, sorted.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_picture_slice`.
    """
    file, coding = _parse(folder)
    count = stored_geometry(file)[0][0] if coding == "stored" else 1
    return {n: os.path.join(folder, f"{n}.png") for n in range(count)}


def picture_slice_exists(path: str | os.PathLike) -> bool:
    """Whether a path is one of :func:`picture_slices`."""
    folder, number = _split(path)
    file, coding = _parse(folder)
    if not os.path.isfile(file):
        return False
    return 0 <= number < (stored_geometry(file)[0][0] if coding == "stored" else 1)


def picture_slice_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return height and width of a slice in pixels, from its file's header.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_picture_slice`.
    """
    file, coding = _parse(_split(path)[0])
    return stored_geometry(file)[0][1:] if coding == "stored" else open_picture(file).size


def read_picture_slice(path: str | os.PathLike) -> np.ndarray:
    """Read one slice as stored, without conversion to DeepLesion's orientation.

    Each process caches its last four volumes.

    Returns:
        H x W int16 in HU, a copy. Values are rounded to integers and clipped to int16.

    Raises:
        FileNotFoundError: the file or slice does not exist.
        ValueError: the file is damaged, its data type does not match the path's coding, or it has
            colors or non-finite values; for a volume, see also
            :meth:`~lesion_d2.scans.volume_file.VolumeFile.read_volume`.
    """
    folder, number = _split(path)
    file, coding = _parse(folder)
    if not picture_slice_exists(path):
        raise FileNotFoundError(f"{path}: no such CT slice")
    if coding == "stored":
        return _read_stored(file, os.stat(file).st_mtime_ns)[number].copy()
    return _to_hu(file, read_picture(file), coding)


def stored_geometry(
    file: str | os.PathLike,
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Return size and spacing of a volume as stored, from its header.

    Returns:
        Slices, height and width; x, y, z in mm, x that of columns.

    Raises:
        FileNotFoundError, ValueError, ImportError: see :func:`open_stored`.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such volume file")
    return _stored_geometry(os.fspath(file), os.stat(file).st_mtime_ns)


def open_stored(file: str | os.PathLike) -> VolumeFile:
    """Read the header of a NIfTI, MetaImage or NRRD file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format or is damaged.
        ImportError: SimpleITK, required for MetaImage and NRRD, is not installed.
    """
    return open_nifti(file) if is_nifti(file) else open_itk(file)


# --- pictures -------------------------------------------------------------------------------------


def open_picture(file: str | os.PathLike) -> Picture:
    """Read a picture's header.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a PNG, TIFF or JPEG with one image, or its data type is not
            uint8, uint16, int16 or float32.
    """
    with _opened(file) as image:
        return Picture((image.height, image.width), _kind(file, image))


def read_picture(file: str | os.PathLike) -> np.ndarray:
    """Read a picture's grey values, H x W, of the data type that :func:`open_picture` returns.

    A color picture is accepted as grey if it is opaque and all channels are equal.

    Raises:
        FileNotFoundError, ValueError: see :func:`open_picture`; or the picture is damaged or has
            colors.
    """
    with _opened(file) as image:
        kind = _kind(file, image)
        if image.format == "PNG":
            data = np.fromfile(file, np.uint8)
            check_chunks(file, data)
            if image.mode in _GREY and data[_DEPTH] >= 8:  # Pillow fills missing rows
                return decode_grey(file, data, (image.height, image.width), np.dtype(kind))
        try:
            if image.mode == "P":
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            values = np.asarray(image)
        except _DAMAGED as error:
            raise ValueError(f"{file}: found a damaged picture ({one_line(error)})") from None
        channels = image.getbands()
    if values.ndim == 3:
        if channels[-1] == "A":
            if (values[..., -1] != 255).any():
                raise ValueError(f"{file}: found transparent pixels, expected grey values")
            values = values[..., :-1]
        if (values != values[..., :1]).any():
            raise ValueError(
                f"{file}: found colors ({image.mode}), expected grey values, or equal channels"
            )
        values = values[..., 0]
    return values.astype(kind)


def _opened(file: str | os.PathLike) -> Image.Image:
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such picture")
    try:
        with warnings.catch_warnings():  # of large pictures, which have their own error message
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=_FORMATS)
        frames = getattr(image, "n_frames", 1)
    except _DAMAGED as error:
        raise ValueError(
            f"{file}: found no readable picture ({one_line(error)}), expected PNG, TIFF or JPEG"
        ) from None
    if frames != 1:
        image.close()
        raise ValueError(f"{file}: found {frames} images in one file, expected one")
    return image


def _kind(file: str | os.PathLike, image: Image.Image) -> str:
    check_picture_size(file, (image.height, image.width))
    found = "uint8"
    if image.format == "PNG":
        with open(file, "rb") as opened:
            depth = opened.read(_DEPTH + 1)[_DEPTH]
        found = f"uint{max(depth, 8)}" if image.mode != "1" else "bool"
    elif image.format == "TIFF":
        bits = np.unique(image.tag_v2.get(_BITS, (1,)))
        kinds = np.unique(image.tag_v2.get(_SAMPLE_FORMAT, (1,)))
        found = f"{_KINDS.get(kinds[0], 'unknown')}{bits[0]}"
        if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            raise ValueError(f"{file}: found a TIFF in which 0 is white, expected 0 to be black")
    has_colors = len(image.getbands()) > 1 or image.mode == "P"
    known = ("uint8",) if has_colors else ("uint8", "uint16", "int16", "float32")
    if found not in known:
        found = f"{image.mode} of {found}" if has_colors else found
        raise ValueError(
            f"{file}: found a picture of {found}, expected grey values of uint8, uint16, int16 or "
            "float32"
        )
    return found


def _to_hu(file: str, values: np.ndarray, coding: str) -> np.ndarray:
    name, _, numbers = coding.partition("=")
    expected = {"offset": ("uint16",), "window": ("uint8",)}.get(name, ("int16", "float32"))
    if values.dtype.name not in expected:
        raise ValueError(
            f"{file}: found values of {values.dtype.name}, expected {' or '.join(expected)} "
            f"({coding})"
        )
    if name == "offset":
        hu = values.astype(np.int32) - int(numbers)
    elif name == "window":
        low, high = map(float, numbers.split(","))
        hu = low + (high - low) / 255 * values.astype(float)
    else:
        if not np.isfinite(values).all():
            raise ValueError(f"{file}: found infinite values or NaN, expected HU")
        hu = values
    return np.rint(np.clip(hu, _INT16.min, _INT16.max)).astype(np.int16)


# --- volumes --------------------------------------------------------------------------------------


@lru_cache(4096)
def _stored_geometry(file: str, changed: int):
    opened = open_stored(file)
    width, height, depth = opened.grid.shape[:3]
    lengths = np.linalg.norm(opened.grid.affine[:3, :3], axis=0)
    return (depth, height, width), tuple(np.round(lengths, 6).tolist())


@lru_cache(_MAX_VOLUMES)
def _read_stored(file: str, changed: int) -> np.ndarray:
    """All slices, Z x H x W int16 as stored; read again if the file changes."""
    opened = open_stored(file)
    return opened.grid.turn.undo(opened.read_volume()[0]).transpose(2, 1, 0)


def _split(path: str | os.PathLike) -> tuple[str, int]:
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    if not are_digits(stem):
        raise ValueError(f"{path}: found the name {name!r}, expected <slice number>.png")
    return folder, int(stem)


def _parse(folder: str | os.PathLike) -> tuple[str, str]:
    """The file and the coding of ``<file>#<coding>``."""
    above, name = os.path.split(folder)
    match = _FOLDER.fullmatch(name)
    if match is None:
        raise ValueError(f"{folder}: found no coding, expected <file>#<coding>")
    return os.path.join(above, match[1]), match[2]
