"""Files of lesion masks that were computed before training."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ...structures.ignore_regions import lesions_of
from ...structures.rle import check_mask, decode_mask, encode_mask
from ...utils.files import read_json, write_json
from ...utils.values import are_numbers, field_problems, is_name, is_text, is_whole
from ..formats.problems import raise_problems, short_repr
from .grabcut import PseudoMask
from .methods import lesion_ends

_FORMAT = "lesion_d2 pseudo masks"
_VERSION = 1
# Stored end points may be rounded by a text format; DeepLesion has a thousandth of a pixel.
_RECIST_TOLERANCE = 1e-2
_REMEDY = "remove the file and run lesion_d2.tools.prepare_masks again"
# Keys of an entry -> check of the value, and a description of valid values.
_FIELDS = {
    "image_id": (is_name, "a name or number"),
    "row": (is_whole, "a whole number"),
    "recist": (lambda value: are_numbers(value, 8), "8 finite numbers"),
    "fell_back": (lambda value: isinstance(value, bool), "true or false"),
}


class PseudoMasks:
    """The masks of a data set, as stored by :func:`write_mask_file`.

    Args:
        path: the file that they were read from.
        info: the file's metadata: ``method``, ``dataset``, ``window``.
        annotations: its entries, checked.
    """

    def __init__(self, path: str | os.PathLike, info: dict, annotations: Iterable[dict]):
        self.path = path
        self.info = info
        self._entries = {(a["image_id"], a["row"]): a for a in annotations}
        self._images = {image_id for image_id, _ in self._entries}

    def __len__(self) -> int:
        return len(self._entries)

    def covers(self, image_id: str | int) -> bool:
        """Whether the file contains masks of this image's lesions."""
        return image_id in self._images

    def entry(self, image: Mapping, annotation: Mapping) -> dict:
        """Return a lesion's entry, see :func:`mask_annotation`.

        Args:
            image: the image's dict.
            annotation: the lesion's annotation. Its end points are compared with those in the file,
                to detect masks that were made with other coordinates.

        Raises:
            ValueError: the file lacks the lesion, the end points differ, or the mask's size differs
                from the image's.
        """
        image_id, row, recist = image["image_id"], annotation.get("row"), lesion_ends(annotation)
        entry = self._entries.get((image_id, row))
        if entry is None:
            raise ValueError(
                f"{self.path}: found no mask of row {row} (image {image_id}); {_REMEDY}"
            )
        where = f"{self.path}: the mask of row {row} (image {image_id})"
        if not np.allclose(entry["recist"], recist, rtol=0, atol=_RECIST_TOLERANCE):
            raise ValueError(
                f"{where} was made from the RECIST end points {entry['recist']}, expected "
                f"{list(recist)}; {_REMEDY}"
            )
        found, size = entry["segmentation"]["size"], (image["height"], image["width"])
        if tuple(found) != size:
            raise ValueError(f"{where} has {found} pixels, expected {list(size)}; {_REMEDY}")
        return entry

    def mask(self, image: Mapping, annotation: Mapping) -> np.ndarray:
        """Return a lesion's mask, (H, W) bool; see :meth:`entry`."""
        rle = self.entry(image, annotation)["segmentation"]
        return decode_mask(rle, (image["height"], image["width"]))


def check_mask_files(files: Sequence[PseudoMasks], images: Iterable[Mapping]) -> None:
    """Check that the files contain all masks that a data set needs.

    Args:
        files: mask files; an image's masks are taken from the first file that covers it.
        images: dicts of a data set. Lesions with a ``segmentation`` need no mask from a file.

    Raises:
        ValueError: see :meth:`PseudoMasks.entry`.
    """
    for image in images:
        masks = next((masks for masks in files if masks.covers(image["image_id"])), None)
        for annotation in lesions_of(image.get("annotations", ())):
            if masks is not None and "segmentation" not in annotation:
                masks.entry(image, annotation)


def mask_annotation(image_id: str, annotation: Mapping, found: PseudoMask) -> dict:
    """Make an entry of a mask file.

    Args:
        image_id: the image's name.
        annotation: the lesion's annotation, with ``row`` and the keys for :func:`lesion_ends`.
        found: the lesion's mask.

    Returns:
        ``image_id, row, recist, fell_back, segmentation`` (COCO RLE with ASCII ``counts``).
    """
    return {
        "image_id": image_id,
        "row": annotation["row"],
        "recist": list(lesion_ends(annotation)),
        "fell_back": found.fell_back,
        "segmentation": encode_mask(found.mask),
    }


def write_mask_file(path: str | os.PathLike, info: dict, annotations: Iterable[dict]) -> None:
    """Write a mask file atomically.

    Args:
        path: JSON file; replaced if it exists.
        info: metadata of the masks: ``method``, ``dataset``, ``window``.
        annotations: entries as :func:`mask_annotation` returns them.
    """
    info = {"format": _FORMAT, "version": _VERSION, **info}
    write_json(path, {"info": info, "annotations": list(annotations)})


def load_mask_file(path: str | os.PathLike) -> PseudoMasks:
    """Read a mask file that :func:`write_mask_file` wrote.

    Args:
        path: the JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON, not a mask file, or of another version, or has invalid
            entries, which are listed one per line with the entry and the key.
    """
    expected = "a mask file; lesion_d2.tools.prepare_masks makes it"
    content = read_json(path, expected, allow_nan=True)
    info = content.get("info") if isinstance(content, dict) else None
    if not isinstance(info, dict) or info.get("format") != _FORMAT:
        raise ValueError(f"{path}: found no info.format, expected {_FORMAT!r}")
    if info.get("version") != _VERSION:
        raise ValueError(
            f"{path}: found version {short_repr(info.get('version'))}, expected {_VERSION}"
        )
    if not is_text(info.get("method")):
        raise ValueError(
            f"{path}: info.method: found {short_repr(info.get('method'))}, expected a name"
        )
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        raise ValueError(f"{path}: found no list of annotations")
    problems = [
        f"annotation {number}: {text}"
        for number, entry in enumerate(annotations)
        for text in entry_problems(entry)
    ]
    raise_problems(path, problems)
    masks = PseudoMasks(path, info, annotations)
    if len(masks) < len(annotations):
        raise ValueError(
            f"{path}: found {len(annotations) - len(masks)} lesions (image_id and row) twice, "
            "expected each once"
        )
    return masks


def entry_problems(entry: object) -> Iterator[str]:
    """Yield the errors of a mask file's entry: key, found, expected."""
    yield from field_problems(entry, _FIELDS)
    if isinstance(entry, dict):
        try:
            check_mask(entry.get("segmentation"))
        except ValueError as error:
            yield f"segmentation: {error}"
