"""Decoding of DICOM slices, and conversion to HU."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from .codestream import declared_size
from .files import describe
from .frame import functional_group

if TYPE_CHECKING:
    import pydicom

_ELEMENT_BYTES = 12  # header of the pixel data element
_IMAGE_PIXEL = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
_END = b"\xff\xd9"  # end marker of JPEG, JPEG-LS and JPEG 2000
_MAX_PADDING = 1024  # bytes
_RLE = "1.2.840.10008.1.2.5"  # declares no size of its own
_INT16 = np.iinfo(np.int16)
_MAX_SLOPE, _MAX_INTERCEPT = 1e4, 1e6
#: HU of padding pixels, outside of the scanner's field of view.
PADDING_HU = -1024


def missing_decoder(transfer_syntax: str) -> str | None:
    """One line on the package missing to decode a transfer syntax; None if nothing is missing."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    name = UID(transfer_syntax).name
    try:
        decoder = get_decoder(transfer_syntax)
    except NotImplementedError:
        return f"found pixels in {name}, which nothing here decodes"
    if decoder.is_available:
        return None
    packages = " or ".join(
        one.partition("- requires ")[2] or one for one in decoder.missing_dependencies
    )
    return (
        f"found pixels in {name}, expected a package that decodes them: {packages} "
        '(pip install -e ".[scans]")'
    )


def stored_values(
    dataset: "pydicom.Dataset", opened: BinaryIO | None = None, indices: Sequence[int] = (0,)
) -> Iterator[np.ndarray]:
    """Decode slices one by one.

    Args:
        dataset: the header, with the pixels if ``opened`` is None.
        opened: the open file, positioned at its pixels; it stays open, and frames are read on
            demand.
        indices: indices of the frames.

    Yields:
        Rows x columns integers; bits above the stored ones, such as overlays, are removed.

    Raises:
        ValueError: the pixels are damaged, or cannot be decoded; the message has no file name.
    """
    from pydicom.pixels import iter_pixels

    size = dataset.Rows, dataset.Columns
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frames = _encapsulated(dataset, opened, indices)
    else:
        frames = iter_pixels(dataset if opened is None else opened, indices=indices)
    with closing(frames):
        for _ in indices:
            try:
                values = next(frames)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # decoders raise various errors; one in Rust panics
                reason = describe(error)
                raise ValueError(f"found pixels that cannot be decoded ({reason})") from None
            if values.shape != size or values.dtype.kind not in "iu":
                raise ValueError(f"found pixels of shape {values.shape}, expected {size}")
            yield _without_unused_bits(values, dataset)


def hounsfield_units(
    values: np.ndarray, dataset: "pydicom.Dataset", index: int | None = None
) -> np.ndarray:
    """Convert stored values to HU with the slice's rescale slope and intercept.

    Padding becomes -1024 HU unless it is lower. MONOCHROME1 only affects display, not HU.

    Args:
        values: rows x columns integers.
        dataset: the header.
        index: index of a frame in a multi-frame file.

    Returns:
        Rows x columns int16, rounded and clipped.

    Raises:
        ValueError: the slope or intercept is not a number, or is implausible.
    """
    slope, intercept = (
        _rescale(dataset, index, keyword) for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if not (0 < abs(slope) <= _MAX_SLOPE and abs(intercept) <= _MAX_INTERCEPT):
        raise ValueError(f"found the rescale slope {slope} and intercept {intercept}")
    if slope == 1 and intercept.is_integer() and abs(intercept) < 2**31 and values.itemsize < 4:
        hu = values.astype(np.int32) + np.int32(intercept)
    else:
        hu = np.rint(values * slope + intercept)
    hu = np.clip(hu, _INT16.min, _INT16.max).astype(np.int16)
    padded = _padded(values, dataset)
    if padded is not None:
        hu[padded & (hu > PADDING_HU)] = PADDING_HU
    return hu


def _encapsulated(dataset, opened: BinaryIO | None, indices: Sequence[int]):
    """Decode compressed frames, one by one."""
    from pydicom.dataset import Dataset
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.pixels import pixel_array

    start = None if opened is None else opened.tell() + _ELEMENT_BYTES
    table = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    single = Dataset()
    single.file_meta = dataset.file_meta
    for keyword in _IMAGE_PIXEL:
        single[keyword] = dataset[keyword]
    for index in indices:
        if opened is not None:
            opened.seek(start)
        data = get_frame(
            dataset.PixelData if opened is None else opened,
            index,
            extended_offsets=None if None in table else table,
            number_of_frames=int(dataset.get("NumberOfFrames") or 1),
        )
        _check_declared(data, dataset)
        single.PixelData = encapsulate([data])
        yield pixel_array(single)


def _check_declared(data: bytes, dataset) -> None:
    """Refuse a compressed image whose size differs from the header; it could fill the memory."""
    if dataset.file_meta.TransferSyntaxUID == _RLE:
        return
    declared, expected = declared_size(data), (dataset.Rows, dataset.Columns, 1)
    if declared != expected:
        raise ValueError(f"they declare the size {declared}, expected {expected}")
    # Some decoders silently fill the rest of a truncated image.
    if not data[-_MAX_PADDING:].rstrip(b"\0").endswith(_END):
        raise ValueError("the image's end marker is missing: it is truncated")


def _without_unused_bits(values: np.ndarray, dataset) -> np.ndarray:
    unused = values.dtype.itemsize * 8 - dataset.BitsStored
    if unused <= 0:
        return values
    # Shifting left and back extends the sign bit.
    kind = "u" if dataset.PixelRepresentation == 0 else "i"
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return (native.view(f"{kind}{values.dtype.itemsize}") << unused) >> unused


def _rescale(dataset, index: int | None, keyword: str) -> float:
    if index is None:
        return float(dataset[keyword].value)
    name = "PixelValueTransformationSequence"
    value = functional_group(dataset.PerFrameFunctionalGroupsSequence[index], name, keyword)
    if value is None:
        value = functional_group(dataset.SharedFunctionalGroupsSequence[0], name, keyword)
    return float(value)


def _padded(values: np.ndarray, dataset) -> np.ndarray | None:
    """Mask of padding, by the header's padding value or range."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    ends = [_as_stored(value, dataset) for value in (first, first if last is None else last)]
    if None in ends:
        return None
    return (
        values == ends[0] if ends[0] == ends[1] else (values >= min(ends)) & (values <= max(ends))
    )


def _as_stored(value, dataset) -> int | None:
    """A padding value in the pixels' representation; it may be signed although they are not."""
    if isinstance(value, bytes):
        value = int.from_bytes(value[:2], "little")
    try:
        value = int(value) & ((1 << dataset.BitsStored) - 1)
    except (TypeError, ValueError):
        return None
    is_negative = dataset.PixelRepresentation == 1 and value >> (dataset.BitsStored - 1)
    return value - (1 << dataset.BitsStored) if is_negative else value
