import contextlib
import io
import json
from pathlib import Path

from lesion_d2.data.catalog import load_records
from lesion_d2.data.coco import load_ct_coco, register_ct_coco
from lesion_d2.data.coco.writing import write_coco
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.importers.coco import list_coco
from lesion_d2.structures.rle import decode_mask, encode_mask

import cv2
import nibabel
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.structures import BoxMode
from made_up_coco import HEIGHT, WIDTH, hu_image, write_png16
from pycocotools.coco import COCO

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "deeplesion_sample"


def blob(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).random((HEIGHT, WIDTH)).astype(np.float32)
    mask = cv2.GaussianBlur(noise, (0, 0), 2)
    return mask > np.quantile(mask, 0.9)


def ring() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:12, 6:14] = True
    mask[8:9, 9:11] = False
    return mask


def lesion(mask=None, box=(1.5, 2.25, 9, 8.5), category=0, **more) -> dict:
    if mask is not None:
        rows, columns = np.nonzero(mask)
        box = (columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5)
        more["segmentation"] = encode_mask(mask)
    box = [float(edge) for edge in box]
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, **more}


@pytest.fixture
def dataset(tmp_path):
    """Three slices of a volume in DeepLesion's coding, the last one without an annotation."""
    annotations = [
        [
            lesion(blob(1), lesion_id=4),
            lesion(recist=[2, 4, 8, 4, 5, 3, 5, 7], diameters_mm=(6, 4), category=1),
        ],
        [lesion(blob(2), lesion_id=4), lesion(ring(), category=1), lesion(blob(3), iscrowd=1)],
        [],
    ]
    records = []
    for number, found in enumerate(annotations, 11):
        file = tmp_path / "source" / "ct" / f"{number:03d}.png"
        write_png16(file, hu_image(number))
        records.append(
            {
                "file_name": str(file),
                "image_id": f"ct_{number:03d}",
                "height": HEIGHT,
                "width": WIDTH,
                "spacing": (0.7, 0.7, 2.5),
                "slice_range": (11, 13),
                "slice_index": number,
                "patient": 3,
                "volume": "ct",
                "window": (-160.0, 240.0),
                "annotations": found,
            }
        )
    names = ["to_export"]
    DatasetCatalog.register("to_export", lambda: records)
    MetadataCatalog.get("to_export").set(thing_classes=["nodule", "cyst"], evaluator_type="lesion")
    yield records, names
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def check_same(records, found):
    for ours, theirs in zip(records, found, strict=True):
        for a, b in zip(ours["annotations"], theirs["annotations"], strict=True):
            np.testing.assert_allclose(a["bbox"], b["bbox"], atol=1e-5)
            assert (a["category_id"], a.get("lesion_id")) == (b["category_id"], b.get("lesion_id"))
            assert a.get("iscrowd", 0) == b.get("iscrowd", 0)
            for key in ("recist", "diameters_mm"):
                np.testing.assert_allclose(a.get(key, 0), b.get(key, 0), atol=1e-5)
            assert ("segmentation" in a) == ("segmentation" in b)
            if "segmentation" in a:
                masks = [decode_mask(x["segmentation"]) for x in (a, b)]
                assert (masks[0] == masks[1]).all()


@pytest.mark.parametrize("images", ["none", "png16", "png8"])
@pytest.mark.parametrize("polygons", [False, True])
def test_what_is_written_is_read_back_the_same(tmp_path, dataset, images, polygons):
    records, _ = dataset
    window = (-1000, 1000) if images == "png8" else None
    options = {"images": images, "window": window, "polygons": polygons, "workers": 1}
    written = write_coco("to_export", tmp_path / "out", **options)
    assert (written.num_images, written.num_annotations, written.num_masks) == (3, 5, 4)
    assert written.num_rles == (2 if polygons else 4)  # the ring, and the region to be ignored
    found = load_ct_coco(written.file, written.image_root)
    check_same(records, found)
    for ours, theirs in zip(records, found, strict=True):
        hu, expected = read_slice(theirs["file_name"]), read_slice(ours["file_name"])
        if images == "png8":
            assert np.abs(hu - np.clip(expected, -1000, 1000)).max() <= 2000 / 255 / 2 + 1
        else:
            assert (hu == expected).all()
        assert theirs["patient"] == "3" and theirs["spacing"] == (0.7, 0.7, 2.5)
        assert theirs["window"] == (-160, 240)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_round_trip_by_the_importer_makes_volumes_again(tmp_path, dataset):
    written = write_coco("to_export", tmp_path / "out", images="png16", workers=1)
    [case] = list_coco(written.file).cases
    imported = case.read()
    assert (imported.voxels == np.stack([hu_image(n) for n in (11, 12, 13)])).all()
    volume = imported.volume
    assert (volume.name, volume.patient, volume.spacing) == ("ct", "3", (0.7, 0.7, 2.5))
    first = volume.lesions[0]
    assert first.slices == [0, 1] and not first.ignore
    for z, mask in enumerate((blob(1), blob(2))):
        rle = {"size": [HEIGHT, WIDTH], "counts": first.masks[z]}
        assert (decode_mask(rle) == mask).all()
    assert [le.ignore for le in volume.lesions] == [False, False, False, True]


def test_other_programs_read_it(tmp_path, dataset):
    records, names = dataset
    written = write_coco("to_export", tmp_path / "out", images="png16", workers=1)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(written.file)
    assert coco.getCatIds() == [1, 2] and coco.getImgIds() == [1, 2, 3]

    content = json.loads(written.file.read_text())
    assert content["categories"] == [{"id": 1, "name": "nodule"}, {"id": 2, "name": "cyst"}]
    annotations = [a for record in records for a in record["annotations"]]
    for entry, annotation in zip(content["annotations"], annotations, strict=True):
        if "segmentation" in annotation:
            mask = coco.annToMask(entry).astype(bool)
            assert (mask == decode_mask(annotation["segmentation"])).all()
            assert entry["area"] == mask.sum()
            # COCO's box of pixels: from the edge of the first one.
            rows, columns = np.nonzero(mask)
            extent = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert entry["bbox"] == extent
        else:
            assert entry["area"] == pytest.approx(entry["bbox"][2] * entry["bbox"][3])

    names.append("exported")
    theirs = load_coco_json(str(written.file), str(written.image_root), "exported")
    assert [d["file_name"] for d in theirs] == [
        str(tmp_path / "out" / "images" / f"ct_{n:03d}.png") for n in (11, 12, 13)
    ]
    for ours, other in zip(records, theirs, strict=True):
        for a, b in zip(ours["annotations"], other["annotations"], strict=True):
            box = BoxMode.convert(b["bbox"], b["bbox_mode"], BoxMode.XYXY_ABS)
            np.testing.assert_allclose(np.add(a["bbox"], 0.5), box, atol=1e-5)
            assert a["category_id"] == b["category_id"]


def test_coco_in_and_out(tmp_path, dataset):
    """Names, codings and coordinates of ``file#k`` are those that were registered."""
    _, names = dataset
    image = nibabel.Nifti1Image(np.stack([hu_image(n) for n in range(3)]).T, np.eye(4))
    (tmp_path / "data").mkdir()
    nibabel.save(image, tmp_path / "data" / "ct.nii.gz")
    cv2.imwrite(str(tmp_path / "data" / "a.png"), blob(1).astype(np.uint8))
    content = {
        "images": [
            {"id": 5, "file_name": "ct.nii.gz#2", "height": HEIGHT, "width": WIDTH},
            {"id": 9, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [{"id": 1, "image_id": 9, "category_id": 3, "bbox": [1, 2, 3.5, 4]}],
        "categories": [{"id": 3, "name": "x"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    register_ct_coco("again", tmp_path / "coco.json", tmp_path / "data", hu_window=(-100, 200))
    names.append("again")
    written = write_coco("again", tmp_path / "out")
    assert written.image_root == tmp_path / "data"
    images = json.loads(written.file.read_text())["images"]
    found = [(i["file_name"], i["source_id"], i.get("hu_window")) for i in images]
    assert found == [("ct.nii.gz#2", 5, None), ("a.png", 9, [-100, 200])]
    again = load_ct_coco(written.file, written.image_root)
    check_same(load_records("again"), again)
    assert [d["file_name"] for d in again] == [d["file_name"] for d in load_records("again")]


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no real slices beside the project")
def test_real_key_slices(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(SAMPLE.parent))
    written = write_coco("deeplesion_sample", tmp_path / "out")
    check_same(load_records("deeplesion_sample"), load_ct_coco(written.file, written.image_root))


# --- what cannot be written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "jpeg"}, "images: found 'jpeg', expected one of none, png8, png16"),
        ({"images": "png8"}, "window: found None for images 'png8', expected the HU of 0 and 255"),
        ({"window": (0, 1)}, r"window: found \(0, 1\) for images 'none'"),
        ({"images": "png8", "window": (5, 1)}, "low < high"),
    ],
)
def test_invalid_options_are_refused_and_nothing_is_written(tmp_path, dataset, options, message):
    with pytest.raises(ValueError, match=message):
        write_coco("to_export", tmp_path / "out", workers=1, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_stands_there_stays(tmp_path, dataset):
    records, _ = dataset
    output = tmp_path / "out"
    write_coco("to_export", output, images="png16", workers=1)
    with pytest.raises(FileExistsError, match=r"an annotations.json in it, .* or --overwrite"):
        write_coco("to_export", output)
    before = (output / "annotations.json").read_bytes()
    records[1]["file_name"] = str(tmp_path / "none" / "001.png")
    with pytest.raises(FileNotFoundError):
        write_coco("to_export", output, images="png16", workers=1, overwrite=True)
    assert (output / "annotations.json").read_bytes() == before
    records.pop(1)
    write_coco("to_export", output, images="png16", workers=1, overwrite=True)
    assert len(list((output / "images").iterdir())) == 2
    (output / "annotations.json").unlink()
    with pytest.raises(FileExistsError, match=r"another file or folder, expected another path$"):
        write_coco("to_export", output, overwrite=True)


def test_records_that_cannot_be_written_are_refused_with_their_image(tmp_path, dataset):
    records, _ = dataset
    with pytest.raises(ValueError, match="data set 'nothing', which is not registered"):
        write_coco("nothing", tmp_path / "out")
    records[1]["file_name"] = str(tmp_path / "ct.nii.gz" / "003.png")
    with pytest.raises(ValueError, match=r"image ct_012: found the slice .* expected images png8"):
        write_coco("to_export", tmp_path / "out")
    del records[1]["annotations"][0]["bbox_mode"]
    with pytest.raises(ValueError, match=r"image ct_012, an annotation: found bbox_mode None"):
        write_coco("to_export", tmp_path / "out", images="png16")
