import json

from lesion_d2.data.phantoms.volumes import load_volumes
from lesion_d2.data.volume_set.dicts import load_volume_set
from lesion_d2.data.volumetric.lesions import lesion_voxels
from lesion_d2.data.volumetric.records import volume_records

import numpy as np
import pytest
from detectron2.structures import BoxMode
from made_up_sets import SIZE, write_made_up_set
from pycocotools import mask as coco_mask


def made_up_slices(numbers=(3, 4, 5, 7, 8), volume="v") -> list[dict]:
    return [
        {
            "image_id": f"{volume}_{n}",
            "file_name": f"{volume}/{n:03d}.png",
            "height": 20,
            "width": 30,
            "spacing": (0.7, 0.7, 2.0),
            "slice_index": n,
            "volume": volume,
            "annotations": [],
        }
        for n in numbers
    ]


def annotation(box, **others) -> dict:
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "lesion_id": 1, **others}


def test_a_gap_parts_a_volume_and_its_lesions():
    slices = made_up_slices()
    for image, box in zip(slices[1:4], ([4, 5, 9, 9], [3, 5, 8, 10], [5, 5, 7, 7]), strict=True):
        image["annotations"].append(annotation(box))
    first, second = volume_records(reversed(slices))
    assert (first["image_id"], second["image_id"]) == ("v@3", "v@7")
    assert (first["shape"], second["shape"]) == ((3, 20, 30), (2, 20, 30))
    assert (first["first_slice"], second["first_slice"]) == (3, 7)
    assert second["files"] == ["v/007.png", "v/008.png"] and first["patient"] == "v"
    assert [a["bbox"] for a in first["annotations"]] == [[3, 5, 0.5, 9, 10, 2.5]]
    assert [a["bbox"] for a in second["annotations"]] == [[5, 5, -0.5, 7, 7, 0.5]]
    assert "segmentation" not in first["annotations"][0]


def test_lesions_of_a_phantom_are_those_of_its_file(tiny_phantom):
    phantom = tiny_phantom / "phantom"
    records = {r["image_id"]: r for r in volume_records(load_volumes(phantom, None))}
    entries = json.loads((phantom / "true_volumes.json").read_text())
    assert sum(len(r["annotations"]) for r in records.values()) == len(entries) > 5
    for entry in entries:
        record = records[entry["image_id"].rsplit("_", 1)[0]]
        (found,) = [a for a in record["annotations"] if a["lesion_id"] == entry["row"]]
        x1, y1, first, x2, y2, last = entry["box3d"]
        offset = record["first_slice"]
        assert found["bbox"][2::3] == [first - offset - 0.5, last - offset + 0.5]
        # The annotated box lies 5 px around the end points of the diameters, not of the mask.
        low, high = np.array(found["bbox"][:2]), np.array(found["bbox"][3:5])
        assert (low >= np.array([x1, y1]) - 5.5).all() and (high <= np.array([x2, y2]) + 5.5).all()
        masks = {str(n + offset): rle for n, rle in found["segmentation"].items()}
        assert masks == entry["masks"]
    record = next(iter(records.values()))
    assert len(record["files"]) == record["shape"][0] and record["shape"][1:] == (64, 64)


def test_volume_sets_have_masks_boxes_and_regions(tmp_path):
    root, volumes = write_made_up_set(tmp_path)
    records = {r["volume"]: r for r in volume_records(load_volume_set(root, every_slice=True))}
    assert [records[v.name]["shape"] for v in volumes] == [v.shape for v in volumes]
    assert [records[v.name]["spacing"] for v in volumes] == [v.spacing for v in volumes]
    first, second = records["a"]["annotations"]
    lesion = volumes[0].lesions[0]
    (x1, y1, z1), (x2, y2, z2) = lesion.box[:3], lesion.box[3:]
    assert first["bbox"] == [x1, y1, z1 - 0.5, x2, y2, z2 + 0.5] and first["category_id"] == 1
    decoded = coco_mask.decode(first["segmentation"][2])
    assert (
        decoded.shape == SIZE and decoded.sum() > 100 and list(first["segmentation"]) == [1, 2, 3]
    )
    assert second["bbox"] == [50, 30, 1.5, 63.5, 40, 4.5] and "segmentation" not in second
    third, region = records["b"]["annotations"]
    assert region["iscrowd"] == 1 and "iscrowd" not in third
    assert region["bbox"] == [40, 10, -0.5, 60, 30, 1.5]


def test_masks_on_some_slices_alone_are_no_mask():
    slices = made_up_slices((0, 1))
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[5:8, 5:8] = 1
    slices[0]["annotations"].append(annotation([4, 4, 9, 9], segmentation=coco_mask.encode(mask)))
    slices[1]["annotations"].append(annotation([4, 4, 9, 9]))
    (record,) = volume_records(slices)
    assert "segmentation" not in record["annotations"][0]


def test_bad_slices_stop_with_one_line():
    slices = made_up_slices((0, 1))
    with pytest.raises(ValueError, match="train, volume 'v': found slice 0 twice, expected once"):
        volume_records([*slices, slices[0]], "train")
    with pytest.raises(ValueError, match="image 'v_0': found no 'volume', expected a slice of"):
        volume_records([{**slices[0], "volume": None}])
    with pytest.raises(ValueError, match="v, slice 1: found 30 x 9 pixels, expected 30 x 20"):
        volume_records([slices[0], {**slices[1], "height": 9}])
    with pytest.raises(ValueError, match="found an annotation without 'lesion_id', expected one"):
        volume_records([{**slices[0], "annotations": [annotation([1, 1, 2, 2], lesion_id=None)]}])
    both = [annotation([1, 1, 2, 2], category_id=k) for k in (0, 1)]
    with pytest.raises(ValueError, match="lesion 1: found the classes 0 and 1, expected one"):
        volume_records([{**s, "annotations": [a]} for s, a in zip(slices, both, strict=True)])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (coco_mask.encode(np.zeros((20, 30), np.uint8, order="F")), "found an empty mask"),
        (
            coco_mask.encode(np.ones((20, 29), np.uint8, order="F")),
            r"found a mask of \[20, 29\] pixels \(height, width\), expected \[20, 30\]",
        ),
        ([[1.0, 1, 5, 1, 5, 5]], r"found the mask \[\[1.0, 1, 5, 1, 5, 5\]\], expected size and"),
        ({"size": [20, 30], "counts": [0, 600]}, r"found the mask counts \[0, 600\]"),
        ({"size": [20, 30], "counts": "00"}, "found an RLE mask of 0 pixels in 2 runs"),
        ({"size": [100_000, 100_000], "counts": "00"}, "found a mask of the size"),
        (None, "found the mask None, expected size and counts"),
    ],
)
def test_masks_that_are_none_stop_with_one_line(mask, message):
    (image,) = made_up_slices((0,))
    image["annotations"].append(annotation([1, 1, 2, 2], segmentation=mask))
    with pytest.raises(
        ValueError, match=f"^train, volume v, lesion 1: segmentation: {message}"
    ) as error:
        volume_records([image], "train")
    assert "\n" not in str(error.value)


def test_a_lesion_that_skips_slices_is_one():
    slices = made_up_slices(range(8))
    boxes = {1: [4, 5, 9, 9], 2: [4, 5, 9, 9], 5: [6, 5, 12, 9]}
    for index, (x1, y1, x2, y2) in boxes.items():
        mask = np.zeros((20, 30), np.uint8, order="F")
        mask[y1:y2, x1:x2] = 1
        rle = coco_mask.encode(mask)
        slices[index]["annotations"].append(annotation([x1, y1, x2, y2], segmentation=rle))
    (record,) = volume_records(slices)
    (lesion,) = record["annotations"]
    assert lesion["bbox"] == [4, 5, 0.5, 12, 9, 5.5]
    voxels, start = lesion_voxels(lesion, record["shape"])
    assert start == (1, 5, 4) and voxels.any(axis=(1, 2)).tolist() == [1, 1, 0, 0, 1]
