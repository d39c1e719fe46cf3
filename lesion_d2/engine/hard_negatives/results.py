"""Hard negatives in memory, in checkpoints and in files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from ...structures.boxes import first_pixel, moved_xywh
from ...structures.rle import check_mask
from ...utils.errors import InputError, short_repr
from ...utils.files import write_json
from ...utils.values import are_numbers, field_problems, is_number, is_whole

#: File name of a data set's hard negatives, in ``OUTPUT_DIR/inference/<data set>``.
FILE_NAME = "hard_negatives.json"

# Keys of an entry by kind of model: the mask and S2, or S2 of boxes.
_MASK_OR_BOX = ("segmentation", "mask_iou", "box_iou")
_STATE_FIELDS = {
    "mined_at": (is_whole, "an iteration"),
    "negatives": (lambda value: isinstance(value, dict), "annotations by images"),
}
_NEGATIVE_FIELDS = {
    "bbox": (
        lambda box: are_numbers(box, 4) and box[0] < box[2] and box[1] < box[3],
        "x1 < x2, y1 < y2",
    ),
    "category_id": (lambda value: is_whole(value) and value >= 0, "a whole number from 0"),
    "score": (is_number, "a number"),
}


@dataclass
class MinedSet:
    """Hard negatives of images, and statistics of the mining.

    Attributes:
        negatives: data set -> ``image_id`` -> annotations, for images that have any.
        num_images: number of processed images.
        num_good: number of images with a good detection.
    """

    negatives: dict[str, dict[str, list[dict]]] = field(default_factory=dict)
    num_images: int = 0
    num_good: int = 0

    @property
    def by_image(self) -> dict[str, list[dict]]:
        """Return ``image_id`` -> annotations for all data sets."""
        return {name: found for images in self.negatives.values() for name, found in images.items()}

    def add(self, other: "MinedSet") -> None:
        """Add the result of another process."""
        for dataset, images in other.negatives.items():
            self.negatives.setdefault(dataset, {}).update(images)
        self.num_images += other.num_images
        self.num_good += other.num_good


def write_mined_set(mined: MinedSet, output_dir: str | os.PathLike) -> None:
    """Write the hard negatives of each data set in COCO's results format.

    Args:
        mined: the hard negatives.
        output_dir: folder of the run; the files are ``inference/<data set>/hard_negatives.json``.
            Boxes are in the coordinates of the data set's files
            (:func:`lesion_d2.structures.boxes.first_pixel`).
    """
    for dataset, images in mined.negatives.items():
        offset = first_pixel(dataset)
        results = [
            {
                "image_id": image_id,
                "category_id": annotation["category_id"],
                "bbox": moved_xywh(_xywh(annotation["bbox"]), offset),
                "score": annotation["score"],
                **{key: annotation[key] for key in _MASK_OR_BOX if key in annotation},
            }
            for image_id, annotations in images.items()
            for annotation in annotations
        ]
        folder = Path(output_dir, "inference", dataset)
        os.makedirs(folder, exist_ok=True)
        write_json(folder / FILE_NAME, results)


def _xywh(box: Sequence[float]) -> list[float]:
    return BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse an invalid state of :class:`HardNegativeMiningHook` in a checkpoint.

    Args:
        state: its ``mined_at``, and its ``negatives``, annotations by ``image_id``.

    Raises:
        InputError: it is invalid; the message contains the image and the key.
    """
    for text in field_problems(state, _STATE_FIELDS):
        raise InputError(f"hard negatives of the checkpoint: {text}")
    for image_id, annotations in state["negatives"].items():
        for text in _negative_problems(annotations):
            where = f"hard negatives of the checkpoint, image {short_repr(image_id)}"
            raise InputError(f"{where}: {text}")


def _negative_problems(annotations: object) -> Iterator[str]:
    """The errors in an image's hard negatives, except the size of masks."""
    if not isinstance(annotations, list):
        yield f"found {short_repr(annotations)}, expected a list of annotations"
        return
    for annotation in annotations:
        yield from field_problems(annotation, _NEGATIVE_FIELDS)
        if "segmentation" in annotation:
            try:
                check_mask(annotation["segmentation"])
            except ValueError as error:
                yield f"segmentation: {error}"
