"""Small data sets in COCO's format, written as other programs write them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 32


def hu_image(seed: int) -> np.ndarray:
    """HU of an image, (HEIGHT, WIDTH) int16."""
    return np.random.default_rng(seed).integers(-1000, 1000, (HEIGHT, WIDTH)).astype(np.int16)


def image_entry(number: int, file_name: str, **more) -> dict:
    return {"id": number, "file_name": file_name, "height": HEIGHT, "width": WIDTH, **more}


def annotation_entry(number: int, image: int, bbox: list, category: int = 1, **more) -> dict:
    area = bbox[2] * bbox[3] if bbox else 0
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": area}
    return {**entry, "iscrowd": 0, **more}


def coco_content(images: list, annotations: list, categories=((1, "lesion"),)) -> dict:
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in categories],
    }


def write_coco_file(folder: Path, content: object, name: str = "coco.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def write_png16(file: Path, hu: np.ndarray, offset: int = 32768) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((hu.astype(np.int32) + offset).astype(np.uint16)).save(file)
