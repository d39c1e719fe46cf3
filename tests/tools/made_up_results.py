"""Three small slices with lesions, and results of predictions on them."""

import json

from lesion_d2.tools.visualize.__main__ import main

NAME = "visualize_test_set"
SIZE = 64


# image id: lesion boxes
LESIONS = {"one": [(8, 8, 24, 24)], "two": [(8, 8, 24, 24), (40, 40, 56, 52)], "none": []}


def make_record(image_id, boxes, folder):
    annotations = []
    for row, (x0, y0, x1, y1) in enumerate(boxes, start=2):
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        recist = [x0 + 2, y, x1 - 2, y, x, y0 + 4, x, y1 - 4]
        annotations.append(
            {"bbox": [x0, y0, x1, y1], "bbox_mode": 0, "category_id": 0, "recist": recist}
            | {"diameters_mm": (x1 - x0 - 4, y1 - y0 - 8), "row": row, "coarse_type": -1}
        )
    return {
        "image_id": image_id,
        "file_name": str(folder / f"{image_id}.png"),
        "height": SIZE,
        "width": SIZE,
        "window": (-100.0, 100.0),
        "annotations": annotations,
    }


def write_results(path, detections):
    """detections: (image id, box XYXY, score)."""
    entries = []
    for image_id, (x0, y0, x1, y1), score in detections:
        box = [x0, y0, x1 - x0, y1 - y0]
        entries.append({"image_id": image_id, "category_id": 0, "bbox": box, "score": score})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return str(path)


def run_predictions(results, *arguments):
    return main(["predictions", "--dataset", NAME, "--results", results, *arguments])
