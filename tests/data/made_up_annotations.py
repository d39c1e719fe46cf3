"""Annotations of lesions on a small slice."""

from lesion_d2.data.pseudo_masks import ellipse_mask

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

SIZE = (96, 128)
NEGATIVE_BOX = [30.0, 50.0, 54.0, 66.0]


def recist_annotation(recist, row=2):
    x, y = recist[0::2], recist[1::2]
    return {
        "bbox": [min(x) - 5, min(y) - 5, max(x) + 5, max(y) + 5],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "recist": recist,
        "row": row,
    }


OBLIQUE = recist_annotation([40.0, 30.0, 70.0, 50.0, 52.0, 45.0, 58.0, 36.0])


def mined_annotation(box=NEGATIVE_BOX, category=1):
    """A mined negative whose mask is the ellipse inscribed in its box."""
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    mask = ellipse_mask([x1, y, x2, y, x, y1, x, y2], *SIZE)
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "score": 0.9,
        "mask_iou": 0.1,
    }


def slice_record(folder, size, annotations, **fields):
    """A data set's dict of the slice ``<folder>/010.png``, with these fields."""
    return {
        "file_name": f"{folder}/010.png",
        "image_id": "000001_01_01_010",
        "height": size[0],
        "width": size[1],
        "spacing": (0.8, 0.8, 2.0),
        "slice_range": (10, 10),
        "window": (-175.0, 275.0),
        "annotations": annotations,
        **fields,
    }
