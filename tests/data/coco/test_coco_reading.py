import contextlib
import io
import itertools
import json

from lesion_d2.data.coco import read_coco
from lesion_d2.structures.rle import decode_mask, encode_mask

import numpy as np
import pytest
from made_up_coco import (
    HEIGHT,
    WIDTH,
    annotation_entry,
    coco_content,
    image_entry,
    write_coco_file,
)
from pycocotools.coco import COCO

MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[5:9, 6:12] = MASK[7:15, 8:10] = True
POLYGONS = [[2.0, 3.0, 9.5, 3.2, 8.0, 11.0, 2.5, 10.0], [20, 5, 26, 5, 26, 9.5]]


def uncompressed(mask):
    """Lengths of runs down the columns, the first one outside of the mask."""
    runs = [(value, len(list(pixels))) for value, pixels in itertools.groupby(mask.T.ravel())]
    assert not runs[0][0]
    return {"size": list(mask.shape), "counts": [length for _, length in runs]}


def one(**changes):
    """A file's content with one image and one annotation."""
    return coco_content(
        [image_entry(3, "a.png")], [{**annotation_entry(7, 3, [4, 5, 10, 8]), **changes}]
    )


def read_one(tmp_path, **changes):
    [image] = read_coco(write_coco_file(tmp_path, one(**changes))).images
    [annotation] = image.annotations
    return annotation


def test_boxes_are_xywh_from_the_edge_of_the_first_pixel(tmp_path):
    assert read_one(tmp_path).box == (3.5, 4.5, 13.5, 12.5)
    cut = read_one(tmp_path, bbox=[-3, 20, WIDTH + 6, 9])
    assert cut.box == (-0.5, 19.5, WIDTH - 0.5, HEIGHT - 0.5)
    assert read_one(tmp_path, bbox=None, segmentation=encode_mask(MASK)).box == (
        5.5,
        4.5,
        11.5,
        14.5,
    )


@pytest.mark.parametrize("kind", ["polygons", "compressed", "uncompressed"])
def test_masks_are_those_of_pycocotools(tmp_path, kind):
    segmentation = {
        "polygons": POLYGONS,
        "compressed": encode_mask(MASK),
        "uncompressed": uncompressed(MASK),
    }[kind]
    file = write_coco_file(tmp_path, one(segmentation=segmentation))
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(file)
    expected = theirs.annToMask(theirs.anns[7]).astype(bool)
    [annotation] = read_coco(file).images[0].annotations
    found = decode_mask({"size": [HEIGHT, WIDTH], "counts": annotation.mask})
    assert found.any() and (found == expected).all()
    assert kind == "polygons" or (found == MASK).all()


def test_a_box_alone_and_a_mask_without_a_pixel(tmp_path):
    assert read_one(tmp_path).mask is None and read_one(tmp_path, segmentation=[]).mask is None
    small = [[4.1, 5.1, 4.2, 5.1, 4.2, 5.2]]
    content = read_coco(write_coco_file(tmp_path, one(segmentation=small)))
    assert content.images[0].annotations[0].mask is None
    assert content.messages == ("1 masks are empty; only their boxes are used",)


def test_categories_with_gaps_and_regions_to_be_ignored(tmp_path):
    annotations = [
        annotation_entry(1, 3, [1, 1, 5, 5], 90),
        annotation_entry(2, 3, [1, 1, 6, 6], 7, iscrowd=1),
        annotation_entry(3, 3, [1, 1, 7, 7], 7, ignore=1),
        annotation_entry(4, 3, [1, 1, 8, 8], 12),
    ]
    categories = [(90, "nodule"), (7, "cyst"), (12, "unsure")]
    images = [image_entry(9, "empty.png"), image_entry(3, "a.png")]
    file = write_coco_file(tmp_path, coco_content(images, annotations, categories))
    content = read_coco(file, ignore_categories=["unsure"])
    assert content.classes == ("cyst", "nodule") and content.category_ids == (7, 90)
    empty, image = content.images
    assert (empty.id, empty.annotations) == (9, ())
    found = [(a.id, a.category, a.ignore) for a in image.annotations]
    assert found == [(1, 1, False), (2, 0, True), (3, 0, True), (4, 0, True), (4, 1, True)]


def test_further_keys_of_images_are_read(tmp_path):
    more = {
        "spacing": [0.7, 0.8, 5],
        "patient": 12,
        "volume": "ct",
        "slice": 4,
        "hu_offset": 1024,
        "hu_window": [-160, 240],
        "window": [0, 80],
    }
    extra = {"lesion_id": "b", "recist": [5, 6, 9, 6, 7, 5, 7, 8], "diameters_mm": [4, 3]}
    content = coco_content(
        [image_entry(1, "dir/../a.png", **more), image_entry(2, "sub/ct.nii.gz#11")],
        [annotation_entry(1, 1, [4, 5, 10, 8], **extra)],
    )
    first, second = read_coco(write_coco_file(tmp_path, content)).images
    assert (first.file_name, first.stored_slice, first.spacing) == ("a.png", None, (0.7, 0.8, 5.0))
    assert (first.patient, first.volume, first.slice) == ("12", "ct", 4)
    assert (first.hu_offset, first.hu_window, first.window) == (1024, (-160.0, 240.0), (0.0, 80.0))
    assert (second.file_name, second.stored_slice) == ("sub/ct.nii.gz", 11)
    [annotation] = first.annotations
    assert (annotation.lesion_id, annotation.diameters_mm) == ("b", (4.0, 3.0))
    assert annotation.recist == (4.5, 5.5, 8.5, 5.5, 6.5, 4.5, 6.5, 7.5)


# --- malformed files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "found no readable JSON"),
        ("[" * 100_000, "found no readable JSON"),
        ("[]", r"found \[\], expected an object with images, annotations, categories"),
        ('{"images": []}', "found no 'annotations', expected COCO's images, annotations"),
        (
            '{"images": {}, "annotations": [], "categories": []}',
            "images: found {}, expected a list",
        ),
        ('{"images": [], "annotations": [], "categories": []}', "images: found an empty list"),
        (coco_content([image_entry(1, "a")], [], []), "categories: found an empty list"),
        (coco_content([1], []), "image number 0: found 1, expected an object"),
    ],
)
def test_no_coco_file(tmp_path, content, message):
    file = write_coco_file(tmp_path, content)
    if isinstance(content, str):
        file.write_text(content)
    with pytest.raises(ValueError, match=rf"^{file}: {message}") as error:
        read_coco(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "1"}, "image number 0: id: found '1', expected a whole number"),
        ({"id": True}, "image number 0: id: found True, expected a whole number"),
        ({"file_name": None}, "image 3: file_name: found None, expected a file path"),
        ({"file_name": "/etc/a.png"}, "image 3: file_name: found '/etc/a.png', expected a path be"),
        ({"file_name": "C:\\a.png"}, r"image 3: file_name: found 'C:\\\\a.png', expected a path b"),
        ({"file_name": "b/../../a.png"}, "image 3: file_name: found .* expected a path below the"),
        ({"file_name": "ct.nii.gz"}, "image 3: file_name: found 'ct.nii.gz', expected <file>#<nu"),
        ({"height": 0}, "image 3: height: found 0, expected 1 to 8192 pixels"),
        ({"width": 32.5}, "image 3: width: found 32.5, expected 1 to 8192 pixels"),
        ({"width": 10**400}, "image 3: width: found <integer of 1329 bits>, expected 1 to 8192"),
        ({"spacing": [1, 1]}, r"image 3: spacing: found \[1, 1\], expected x, y and z"),
        ({"spacing": [1, 1, 0]}, "image 3: spacing: found .* expected x, y and z, each a number"),
        ({"hu_offset": 0.5}, "image 3: hu_offset: found 0.5, expected a whole number from 0"),
        ({"hu_window": [5, 5]}, r"image 3: hu_window: found \[5, 5\], expected two HU"),
        ({"patient": {}}, "image 3: patient: found {}, expected a name or number"),
        ({"slice": 4}, "image 3: volume: found None, expected a value, as there is a slice"),
        ({"volume": "a", "slice": -1}, "image 3: slice: found -1, expected a whole number from 0"),
    ],
)
def test_an_invalid_image_is_refused_with_its_key(tmp_path, changes, message):
    content = one()
    content["images"][0] |= changes
    content["annotations"] = []
    file = write_coco_file(tmp_path, content)
    with pytest.raises(ValueError, match=rf"^{file}: {message}") as error:
        read_coco(file)
    assert "\n" not in str(error.value)


SIZE = [HEIGHT, WIDTH]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "annotation number 0: id: found None, expected a whole number"),
        (
            {"image_id": 4},
            "annotation 7: image_id: found 4, expected the id of one of the file's im",
        ),
        (
            {"category_id": 0},
            "annotation 7: category_id: found 0, expected the id of one of the fi",
        ),
        ({"category_id": [1]}, r"annotation 7: category_id: found \[1\], expected the id"),
        ({"bbox": None}, "annotation 7: bbox: found None, expected x, y, width, height"),
        ({"bbox": [1, 2, 3]}, r"annotation 7: bbox: found \[1, 2, 3\], expected x, y, width, he"),
        (
            {"bbox": [9, 9, -3, 4]},
            r"annotation 7: bbox: found \[9, 9, -3, 4\], expected .* above 0",
        ),
        ({"bbox": [9, 9, 0, 4]}, r"annotation 7: bbox: found .* width and height above 0"),
        ({"bbox": [float("nan"), 9, 1, 4]}, "annotation 7: bbox: found .* finite numbers"),
        ({"bbox": [10**400, 9, 1, 4]}, "annotation 7: bbox: found .* finite numbers"),
        ({"bbox": [20, 10, 30, 20]}, r"annotation 7: bbox: found .* in the image of 32 x 24 pix"),
        ({"bbox": [40, 10, 3, 3]}, "annotation 7: bbox: found .* in the image of 32 x 24 pixels"),
        ({"iscrowd": 2}, "annotation 7: iscrowd: found 2, expected 0 or 1"),
        ({"iscrowd": "0"}, "annotation 7: iscrowd: found '0', expected 0 or 1"),
        ({"ignore": 0.5}, "annotation 7: ignore: found 0.5, expected 0 or 1"),
        ({"segmentation": 5}, "annotation 7: segmentation: found 5, expected polygons or RLE"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "annotation 7: segmentation: found 1, expected a l"),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            r"annotation 7: segmentation: found \[1, 2, 3, 4\], .*6 or more numbers .* \(here 4\)",
        ),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, r"annotation 7: segmentation: .*\(here 7\)"),
        (
            {"segmentation": [[1, 2, 3, 4, 5, float("inf")]]},
            "annotation 7: segmentation: .* expected a polygon of finite numbers",
        ),
        (
            {"segmentation": [[1, 2, 3, 4, 5, 1e9]]},
            r"annotation 7: segmentation: found \[5.0, 1000000000.0\], expected points inside",
        ),
        (
            {"segmentation": [[0, 0, WIDTH, HEIGHT] * 1000]},
            "annotation 7: segmentation, length of the outlines in pixels: found 64000, expected",
        ),
        (
            {"segmentation": {"size": [100_000, 100_000], "counts": "00"}},
            "annotation 7: segmentation, size: found .* expected the image's",
        ),
        (
            {"segmentation": {"size": [WIDTH, HEIGHT], "counts": "0"}},
            r"annotation 7: segmentation, size: found \[32, 24\], expected the image's \[24, 32\]",
        ),
        ({"segmentation": {}}, "annotation 7: segmentation, size: found None, expected the ima"),
        (
            {"segmentation": {"size": SIZE, "counts": [3, 5]}},
            "annotation 7: segmentation, sum of counts: found 8, expected 768, the pixels of 24 x",
        ),
        (
            {"segmentation": {"size": SIZE, "counts": [800, -32]}},
            "annotation 7: segmentation, counts: found .* expected a string or a list of",
        ),
        (
            {"segmentation": {"size": SIZE, "counts": "zz00"}},
            "annotation 7: segmentation: found an RLE mask of .* expected runs that fill 24 x 32",
        ),
        ({"segmentation": {"size": SIZE, "counts": "ü"}}, "annotation 7: segmentation, counts: fo"),
        ({"lesion_id": []}, r"annotation 7: lesion_id: found \[\], expected a name or number"),
        ({"recist": [1, 2]}, r"annotation 7: recist: found \[1, 2\], expected 8 numbers"),
        ({"diameters_mm": [2, 3]}, "annotation 7: diameters_mm: found .* the long and the short"),
    ],
)
def test_an_invalid_annotation_is_refused_with_its_key(tmp_path, changes, message):
    file = write_coco_file(tmp_path, one(**changes))
    with pytest.raises(ValueError, match=rf"^{file}: {message}") as error:
        read_coco(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([(1, "a"), (1, "b")], "category 1: id: found it twice"),
        ([(1, "a"), (2, "a")], "category 2: name: found 'a' as in category 1, expected"),
        ([(1, "")], "category 1: name: found '', expected printable text"),
        ([(1, "unsure")], "categories: found only ignored ones"),
        (
            [(1, "a")],
            r"categories: found no 'unsure' to ignore, expected one of \['a'\]",
        ),
    ],
)
def test_invalid_categories_are_refused(tmp_path, categories, message):
    file = write_coco_file(tmp_path, coco_content([image_entry(1, "a.png")], [], categories))
    with pytest.raises(ValueError, match=rf"^{file}: {message}"):
        read_coco(file, ignore_categories=["unsure"] if "ignore" in message else [])


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    content = one(bbox=[1, 1, 0, 0])
    content["images"] += [image_entry(3, "b.png"), image_entry(4, "./a.png")]
    content["annotations"] += [annotation_entry(7, 3, [1, 1, 2, 2]), annotation_entry(8, 4, None)]
    file = write_coco_file(tmp_path, content)
    with pytest.raises(ValueError) as error:
        read_coco(file)
    assert str(error.value).splitlines() == [
        f"{file}: 4 problems",
        "  image 3: id: found it twice, expected unique ids",
        "  image 4: file_name: found 'a.png', expected another file than that of image 3",
        "  annotation 7: bbox: found [1, 1, 0, 0], expected x, y, width, height: finite numbers, "
        "width and height above 0",
        "  annotation 7: id: found it twice, expected unique ids",
    ]


def test_a_file_of_predictions_is_none(tmp_path):
    file = tmp_path / "coco.json"
    file.write_text(json.dumps([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    with pytest.raises(ValueError, match="expected an object with images, annotations"):
        read_coco(file)
    with pytest.raises(FileNotFoundError, match="expected COCO's JSON"):
        read_coco(tmp_path / "none.json")
