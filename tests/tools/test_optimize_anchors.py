import json
import os
import shlex

from lesion_d2.config import add_lesion_config
from lesion_d2.modeling.anchors import anchor_shapes
from lesion_d2.tools.common.box_shapes import csv_boxes, dataset_boxes
from lesion_d2.tools.optimize_anchors import RATIOS_KEY, SIZES_KEY, current_anchors, main

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import BoxMode

NAME = "optimize_anchors_test_set"
QUICK = ["--num-scales", "1", "--num-ratio-pairs", "1"]
CSV = """\
name,x1,y1,x2,y2
a,10,10,30,40
b,0,0,8.5,9

c,100.25,50,180.25,100
"""
SHAPES = [(20, 30), (8.5, 9), (80, 50)]


def config(*opts):
    cfg = get_cfg()
    add_lesion_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


def write_csv(path, text=CSV):
    path.write_text(text)
    return str(path)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def cell_shapes(cfg, num_levels):
    features = [ShapeSpec(stride=4 * 2**level) for level in range(num_levels)]
    cells = build_anchor_generator(cfg, features).cell_anchors
    assert len(cells) == num_levels
    cells = np.concatenate([cell.numpy() for cell in cells])
    return cells[:, 2:] - cells[:, :2]


def test_boxes_of_a_csv(tmp_path):
    file = write_csv(tmp_path / "boxes.csv")
    np.testing.assert_allclose(csv_boxes(file, config()).wh, SHAPES)
    small = config("INPUT.CT.IMAGE_SIZE", 128)
    np.testing.assert_allclose(csv_boxes(file, small).wh, np.array(SHAPES) / 4)
    # 300 x 400 becomes 96 x 128
    resized = csv_boxes(file, small, image_size=(300, 400)).wh
    np.testing.assert_allclose(resized, np.array(SHAPES) * 0.32)
    as_it_is = csv_boxes(file, config("INPUT.CT.IMAGE_SIZE", 0), image_size=(300, 400)).wh
    np.testing.assert_allclose(as_it_is, SHAPES)


def test_image_sizes_of_a_csv(tmp_path):
    text = "height,x1,y1,x2,y2,width\n512,1,1,5,7,512\n1024,1,1,5,7,256\n512,2,2,4,4,512\n"
    shapes = csv_boxes(write_csv(tmp_path / "boxes.csv", text), config()).wh
    np.testing.assert_allclose(shapes, [(4, 6), (2, 3), (2, 2)])


@pytest.fixture
def dataset():
    """A registered data set of three images of different size and spacing."""
    lesion = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    records = [
        {
            "image_id": "one",
            "height": 200,
            "width": 400,
            "spacing": (0.5, 1.0, 5.0),
            "annotations": [
                lesion | {"bbox": [10, 10, 50, 30], "row": 7},
                lesion | {"bbox": [5, 5, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "row": 8},
                lesion | {"bbox": [0, 0, 400, 200], "iscrowd": 1, "row": 9},
            ],
        },
        {"image_id": "none", "height": 64, "width": 64, "annotations": []},
        {
            "image_id": "two",
            "height": 100,
            "width": 100,
            "annotations": [lesion | {"bbox": [1, 1, 11, 21]}],
        },
    ]
    DatasetCatalog.register(NAME, lambda: records)
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME, None)


def test_boxes_of_a_data_set(dataset):
    cfg = config("INPUT.CT.IMAGE_SIZE", 200)
    expected = [(20, 10), (5, 5), (20, 40)]  # crowds are no lesions
    np.testing.assert_allclose(dataset_boxes(NAME, cfg).wh, expected)
    dataset[2]["spacing"] = (2.0, 2.0, 5.0)
    cfg = config("INPUT.CT.PIXEL_SPACING", 1.0)
    expected = [(20, 20), (5, 10), (20, 40)]
    np.testing.assert_allclose(dataset_boxes(NAME, cfg).wh, expected)
    cfg.INPUT.CT.MAX_SIZE = max(dataset[2]["height"], dataset[2]["width"])
    np.testing.assert_allclose(dataset_boxes(NAME, cfg).wh[2], (10, 20))


@pytest.mark.parametrize("resize", [{"PIXEL_SPACING": 1.0, "MAX_SIZE": 100}, {"IMAGE_SIZE": 200}])
def test_cut_borders_are_refused_before_anything_is_read(tmp_path, dataset, resize):
    """Both resizes go by the side of a crop that is not known here."""
    values = [value for key in resize for value in (f"INPUT.CT.{key}", resize[key])]
    cfg = config(*values, "INPUT.CT.CROP_TO_BODY", True)
    message = r"CROP_TO_BODY: found True, expected False if.*pass INPUT.CT.CROP_TO_BODY False"
    with pytest.raises(ValueError, match=message):
        dataset_boxes("not registered", cfg)
    with pytest.raises(ValueError, match=message):
        csv_boxes(tmp_path / "missing.csv", cfg)
    dataset[2]["spacing"] = (2.0, 2.0, 5.0)
    cfg.INPUT.CT.CROP_TO_BODY = False
    assert len(dataset_boxes(NAME, cfg).boxes) == 3


def test_cut_borders_do_not_matter_where_pixels_have_one_size(dataset):
    dataset[2]["spacing"] = (2.0, 2.0, 5.0)
    shapes = [
        dataset_boxes(NAME, config("INPUT.CT.PIXEL_SPACING", 1.0, "INPUT.CT.CROP_TO_BODY", cut)).wh
        for cut in (False, True)
    ]
    np.testing.assert_array_equal(*shapes)


@pytest.mark.parametrize("anchors", ["lists per level", "one list for all"])
def test_current_anchors_are_those_that_detectron2_builds(anchors):
    sizes, ratios = "[[8, 10], [16], [32, 40, 50]]", "[[1.0], [0.5, 2], [1, 3]]"
    if anchors == "one list for all":
        sizes, ratios = "[[8, 10, 30]]", "[[0.5, 1.0]]"
    cfg = config(SIZES_KEY, sizes, RATIOS_KEY, ratios)
    name, shapes = current_anchors(cfg, "configs/some.yaml")
    assert name == "some.yaml"
    expected = np.unique(cell_shapes(cfg, 3), axis=0)
    np.testing.assert_allclose(np.unique(shapes, axis=0), expected)


def test_without_a_config_the_anchors_are_those_of_retinanet():
    name, shapes = current_anchors(config(), "")
    assert name == "Detectron2's RetinaNet"
    sizes = (32, 64, 128, 256, 512)
    expected = anchor_shapes(sizes, (1, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1, 2))
    np.testing.assert_allclose(shapes, expected)
    name, shapes = current_anchors(config(SIZES_KEY, "[[8]]", RATIOS_KEY, "[[1.0]]"), "")
    assert name == "KEY VALUE" and shapes.tolist() == [[8, 8]]


def test_tool_on_a_csv(tmp_path, capsys):
    boxes = write_csv(tmp_path / "boxes.csv")
    output = tmp_path / "new" / "anchors.yaml"
    sizes = ["--sizes", 8, 16, 32, 64]
    assert run("--boxes", boxes, "--output", output, "--seed", 3, *QUICK, *sizes) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"3 boxes of {boxes}, at INPUT.CT.IMAGE_SIZE 512"
    before = next(line for line in lines if line.startswith("before (Detectron2's RetinaNet)"))
    # The smallest default anchors hold the two small boxes; the third one is best with 90.5 x 45.3.
    ious = [600 / 32**2, 8.5 * 9 / 32**2, (80 * 45.2548) / (4000 + 64**2 - 80 * 45.2548)]
    assert before.split()[-3:] == ["45", f"{np.mean(ious):.4f}", "33.33"]
    after = next(line for line in lines if line.startswith("after"))
    assert after.split()[1] == "12" and float(after.split()[2]) > np.mean(ious)
    assert lines[-2:] == [f"fragment  {output}", f"picture   {output.with_suffix('.png')}"]
    assert sorted(os.listdir(output.parent)) == ["anchors.pdf", "anchors.png", "anchors.yaml"]
    picture = cv2.imread(str(output.with_suffix(".png")))
    assert picture.shape[0] > 500 and picture.shape[1] > 1000 and picture.std() > 10


def read_values(out):
    """The KEY VALUE pairs of the output, as a shell would hand them on."""
    (line,) = (line for line in out.splitlines() if line.startswith(SIZES_KEY))
    return shlex.split(line)


def test_a_config_takes_the_fragment_in(tmp_path, capsys):
    boxes = write_csv(tmp_path / "boxes.csv")
    output = tmp_path / "anchors.yaml"
    assert run("--boxes", boxes, "--output", output, *QUICK, "--sizes", 10, 20, 40) == 0
    opts = read_values(capsys.readouterr().out)
    assert opts[::2] == [SIZES_KEY, RATIOS_KEY]
    (tmp_path / "base.yaml").write_text(
        "MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: [[4, 5]]\n  MASK_ON: True\n"
    )
    (tmp_path / "config.yaml").write_text('_BASE_: ["base.yaml", "anchors.yaml"]\nSEED: 5\n')
    cfg = config()
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert cfg.MODEL.MASK_ON and cfg.SEED == 5
    from_opts = config(*opts)
    assert cfg.MODEL.ANCHOR_GENERATOR == from_opts.MODEL.ANCHOR_GENERATOR
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    found = [level[0] / size for level, size in zip(sizes, (10, 20, 40), strict=True)]
    ratios = cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]
    np.testing.assert_allclose(found, found[0], rtol=1e-5)  # one scale for all levels
    assert ratios[1] == 1 and ratios[0] * ratios[2] == pytest.approx(1, rel=1e-5)
    expected = anchor_shapes((10, 20, 40), found[:1], ratios)
    np.testing.assert_allclose(cell_shapes(cfg, 3), expected, rtol=1e-5)
    comments = [line for line in output.read_text().splitlines() if line.startswith("# ")]
    header = "\n".join(comments)
    for part in (boxes, "3 boxes", "objective focal", "seed 0", "before (", "after"):
        assert part in header


def test_tool_on_phantoms_with_a_config(tiny_phantom, tmp_path, capsys):
    config_file = tmp_path / "config.yaml"
    config_file.write_text(
        "MODEL:\n  META_ARCHITECTURE: RetinaNet\n  RETINANET:\n    IN_FEATURES: [p3, p4]\n"
        "  ANCHOR_GENERATOR:\n    SIZES: [[8], [16, 20]]\n    ASPECT_RATIOS: [[1.0]]\n"
        "INPUT:\n  CT:\n    IMAGE_SIZE: 64\n"
    )
    arguments = ["--dataset", "phantom_val", "--config-file", config_file, *QUICK]
    picture = tmp_path / "only.png"
    assert run(*arguments, "--sizes", 10, 20, "--picture", picture) == 0
    out = capsys.readouterr().out
    number = sum(len(record["annotations"]) for record in DatasetCatalog.get("phantom_val"))
    first = f"{number} boxes of phantom_val, at INPUT.CT.IMAGE_SIZE 64"
    assert out.splitlines()[0] == first
    assert "before (config.yaml)" in out and picture.exists()
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "only.pdf", "only.png"]
    # At twice the size, twice the anchors.
    sizes = np.array(json.loads(read_values(out)[1]))
    twice = ["--objective", "focal", "--sizes", 20, 40, "--", "INPUT.CT.IMAGE_SIZE", 128]
    assert run(*arguments, *twice) == 0
    doubled = np.array(json.loads(read_values(capsys.readouterr().out)[1]))
    np.testing.assert_allclose(doubled, 2 * sizes, rtol=1e-3)
    assert run(*arguments) == 1
    assert capsys.readouterr().err == (
        "error: --sizes: found 5, expected 2, one for each level of the config's "
        "MODEL.RETINANET.IN_FEATURES (p3, p4)\n"
    )


HEADER = "x1,y1,x2,y2\n"


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (None, [], "boxes.csv: no such file, expected a CSV with the columns x1, y1, x2, y2"),
        ("", [], "boxes.csv: found no readable CSV"),
        ("x1,y1,x2\n1,2,3\n", [], "boxes.csv: found no column y2, expected"),
        (HEADER, [], "boxes.csv: found no boxes, expected at least one row"),
        (HEADER + "1,2,3,4,5\n", [], "boxes.csv: found rows longer than the header"),
        (HEADER + "1,2,3,4\n\n5,5,5,9\n", [], "boxes.csv, row 4: found the box (5, 5, 5, 9)"),
        (HEADER + "1,2,3,4\n5,5,9,4\n5,5,1,9\n", [], "row 3: found the box (5, 5, 9, 4), expected"),
        (HEADER + "1,2,wide,4\n", [], "row 2: found the box (1, 2, wide, 4), expected"),
        (HEADER + "1,2,inf,4\n", [], "row 2: found the box (1, 2, inf, 4)"),
        (HEADER + "1,2,3\n", [], "row 2: found the box (1, 2, 3, )"),
        ("height," + HEADER + "9,1,2,3,4\n", [], "only the column height, expected height and"),
        ("height,width," + HEADER + "9,0,1,2,3,4\n", [], "row 2: found an image of height 9 and"),
        (CSV, ["--image-size", 0, 5], "--image-size: found an image of height 0 and width 5"),
        (
            "height,width," + HEADER + "9,9,1,2,3,4\n",
            ["--image-size", 9, 9],
            "found columns height and width, expected no --image-size",
        ),
        (CSV, ["INPUT.CT.PIXEL_SPACING", 0.8], "boxes.csv: found no pixel spacing, expected one"),
        (CSV, ["INPUT.CT.IMAGE_SIZE", -1], "INPUT.CT: found IMAGE_SIZE -1"),
        (CSV, ["INPUT.CT.SIZE", 64], "INPUT.CT.SIZE"),
        (CSV, ["--scale-bounds", 2, 0.4], "scale_bounds: found (2, 0.4), expected 0 < low <= high"),
        (CSV, ["--ratio-bounds", 4, 1], "ratio_bounds: found (4, 1), expected 0 < low <= high"),
        (CSV, ["--ratio-bounds", 1, 2] * 3, "expected (low, high) or 2 such pairs"),
        (CSV, ["--sizes", 32, -1], "sizes: found (32.0, -1.0), expected finite numbers"),
        (CSV, ["--num-scales", 0], "found 0 scales"),
        (CSV, ["--config-file", "no.yaml"], "--config-file no.yaml: "),
        (CSV, ["--output", "anchors.txt"], "--output: found anchors.txt, expected the name of a"),
        (CSV, [SIZES_KEY, "[[8], [16]]", RATIOS_KEY, "[[1], [1], [1]]"], "Got sizes of length 2"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch, text, arguments, message):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        write_csv(tmp_path / "boxes.csv", text)
    before = sorted(os.listdir())
    assert run("--boxes", "boxes.csv", *arguments) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0]
    assert sorted(os.listdir()) == before


def test_the_config_is_not_overwritten(tmp_path, capsys):
    boxes = write_csv(tmp_path / "boxes.csv")
    file = tmp_path / "config.yaml"
    file.write_text("SEED: 1\n")
    assert run("--boxes", boxes, "--config-file", file, "--output", file) == 1
    assert "expected a file other than --config-file" in capsys.readouterr().err
    assert file.read_text() == "SEED: 1\n"


def test_bad_data_sets_are_one_line(dataset, capsys):
    def error_of(*arguments):
        assert run("--dataset", *arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "data set 'phantom_tset', which is not registered" in error_of("phantom_tset")
    spacing = error_of(NAME, "INPUT.CT.PIXEL_SPACING", 0.8)
    assert f"data set {NAME!r}, image two: found no pixel spacing, expected one" in spacing
    dataset[0]["annotations"][1]["bbox"] = [5, 5, 0, 10]
    empty = f"data set {NAME!r}, image one, row 8: found the box (5.0, 5.0, 5.0, 15.0), expected"
    assert empty in error_of(NAME)
    for record in dataset:
        record["annotations"] = []
    assert f"data set {NAME!r}: found no boxes, expected at least one" in error_of(NAME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--boxes", "b.csv", "--objective", "median"], "argument --objective: invalid choice"),
        (["--boxes", "b.csv", "--dataset", "d"], "not allowed with argument"),
        ([], "one of the arguments --dataset --boxes is required"),
    ],
)
def test_invalid_options_are_usage_errors(capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err


def test_with_a_config_the_tool_tells_of_anchors_where_the_detector_has_them(tmp_path, capsys):
    """One box on the center of a feature, one between four of them."""
    rows = ["x1,y1,x2,y2", "12,12,20,20", "16,16,24,24"]
    boxes = write_csv(tmp_path / "boxes.csv", "\n".join(rows))
    file = tmp_path / "config.yaml"
    file.write_text(
        "MODEL:\n  META_ARCHITECTURE: LesionRetinaNet\n  RETINANET:\n    IN_FEATURES: [p3]\n"
        "  ANCHOR_GENERATOR:\n    SIZES: [[8]]\n    ASPECT_RATIOS: [[1.0]]\n"
    )
    arguments = ("--boxes", boxes, "--config-file", file, *QUICK, "--sizes", 8)
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    title = "on p3, OFFSET 0 "
    assert title in out
    line = [row for row in out.splitlines() if row.startswith("before")][1]
    # The second's centers are 4 px away along both sides: 16 of 112.
    assert line.split()[-3:] == ["0.5714", "50.00", "50.00"]
