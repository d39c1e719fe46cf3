import math

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.visualization import (
    FALSE_POSITIVE_COLOR,
    HIDDEN_COLOR,
    HIT_COLOR,
    MASK_COLOR,
    OUTCOME_LEGEND,
    PAGE_STYLES,
    PSEUDO_LABEL_COLOR,
    RECIST_COLOR,
    REGION_COLOR,
    TRUTH_COLOR,
    WINDOWS,
    HeatMap,
    LesionVisualizer,
    color_bar,
    contact_sheet,
    match_outcome,
    outcome_quality,
    parse_window,
    save_picture,
    slice_marks,
    stack_pictures,
    window_image,
)
from lesion_d2.visualization.heat_map import heat_map_colors
from lesion_d2.visualization.visualizer import bar_length

import cv2
import matplotlib as mpl
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances
from made_up_pictures import SCALE, SIZE, colored, displayed, make_record, new_visualizer, on_edges
from slice_files import write_slice
from slow_boxes import slow_iou


def make_predictions(boxes, scores, **fields):
    predictions = Instances((SIZE, SIZE))
    predictions.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    predictions.scores = torch.tensor(scores, dtype=torch.float32)
    for name, value in fields.items():
        predictions.set(name, value)
    return predictions


def outline(box, margin=4):
    """(H, W) bool: display pixels within ``margin`` of the box's outline."""
    canvas = np.zeros((SIZE * SCALE, SIZE * SCALE), np.uint8)
    x0, y0, x1, y1 = displayed(box)
    return cv2.rectangle(canvas, (x0, y0), (x1, y1), 1, thickness=2 * margin + 1) > 0


def test_truth_box_is_yellow_at_its_edges_and_nowhere_else():
    box = (20, 24, 40, 36)
    image = new_visualizer().draw_dataset_dict(make_record([box])).get_image()
    yellow = colored(image, TRUTH_COLOR)
    assert image.shape == (SIZE * SCALE, SIZE * SCALE, 3)
    assert on_edges(yellow, box, width=1) == 1
    assert not (yellow & ~outline(box)).any()
    assert (image[30 * SCALE, 30 * SCALE] == 90).all()


def test_recist_diameters_are_drawn_between_their_end_points():
    record = make_record([(15, 15, 45, 45)])
    record["annotations"][0]["recist"] = [20, 30, 40, 30, 30, 25, 30, 35]
    image = new_visualizer().draw_dataset_dict(record).get_image()
    white = colored(image, RECIST_COLOR)
    near = cv2.dilate(white.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    center = SCALE // 2  # coordinate 30 is the center of pixel 30
    assert near[30 * SCALE + center, 21 * SCALE : 40 * SCALE].all()
    assert near[26 * SCALE : 35 * SCALE, 30 * SCALE + center].all()
    rows, columns = np.nonzero(white)
    assert columns.min() >= 20 * SCALE and columns.max() <= 41 * SCALE
    assert rows.min() >= 25 * SCALE and rows.max() <= 36 * SCALE


def test_a_box_passes_through_the_end_points_that_it_bounds():
    record = make_record([(20, 25, 40, 35)])
    record["annotations"][0]["recist"] = [20, 30, 40, 30, 30, 25, 30, 35]
    visualizer = new_visualizer()
    visualizer.draw_dataset_dict(record)
    visualizer.draw_outcome(match_outcome(record, make_predictions([(20, 25, 40, 35)], [0.5])))
    rectangles = [patch.get_bbox().extents for patch in visualizer.output.ax.patches]
    ends = np.concatenate([line.get_xydata() for line in visualizer.output.ax.lines])
    assert len(rectangles) == 6 and len(ends) == 4  # each with its outline
    for rectangle in rectangles:
        assert rectangle.tolist() == [*ends.min(axis=0), *ends.max(axis=0)]


def test_boxes_at_the_border_stay_in_the_picture():
    visualizer = new_visualizer()
    visualizer.draw_dataset_dict(make_record([(0, 0, SIZE, SIZE)]))
    for patch in visualizer.output.ax.patches:
        assert patch.get_bbox().extents.tolist() == [0.5, 0.5, SIZE, SIZE]


def test_mask_colors_stay_inside_the_mask():
    mask = np.zeros((SIZE, SIZE), bool)
    mask[20:31, 22:37] = True
    mask[25, 28] = False  # a hole
    plain = new_visualizer().get_output().get_image()
    visualizer = new_visualizer()
    image = visualizer.draw_dataset_dict(make_record([]), [mask]).get_image()
    changed = (image != plain).any(axis=2)
    assert (changed == np.kron(mask, np.ones((SCALE, SCALE), bool))).all()
    expected = 0.65 * 90 + 0.35 * 255 * np.asarray(MASK_COLOR)
    assert np.abs(image[21 * SCALE, 23 * SCALE] - expected).max() <= 2


def test_masks_and_heat_maps_are_part_of_the_slice():
    gray, mask = 90, np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    visualizer = new_visualizer(gray)
    visualizer.draw_soft_mask(mask, "red", alpha=0.5)
    heat_map = HeatMap("a heat map", mask)
    visualizer.draw_heat_map(heat_map)
    color = np.array([255, 0, 0])
    red = np.array([[0.5 * m * color + (1 - 0.5 * m) * gray for m in row] for row in mask])
    heat = heat_map_colors(mask, 0.0, 1.0)
    expected = heat[..., 3:] * 255 * heat[..., :3] + (1 - heat[..., 3:]) * red
    image = visualizer.get_output().get_image()
    assert np.abs(image[::SCALE, ::SCALE] - expected).max() < 0.51
    assert (image == image[::SCALE, ::SCALE].repeat(SCALE, 0).repeat(SCALE, 1)).all()
    # Text names the mask, and a mask without a color gets one.
    visualizer.draw_soft_mask(mask, text="found")
    assert [text.get_text() for text in visualizer.output.ax.texts] == ["found"]


def test_hits_false_positives_and_missed_lesions_differ_in_color_and_line_style():
    found, missed, wrong = (8, 40, 24, 56), (40, 40, 56, 56), (36, 8, 52, 20)
    hit = (8, 40, 24, 55)
    outcome = match_outcome(
        make_record([found, missed]), make_predictions([wrong, hit], [0.9, 0.8])
    )
    image = new_visualizer().draw_outcome(outcome).get_image()
    blue, red = colored(image, HIT_COLOR), colored(image, FALSE_POSITIVE_COLOR)
    yellow = colored(image, TRUTH_COLOR)
    assert on_edges(blue, hit) > 0.95 and on_edges(red, hit) == 0
    assert 0.5 < on_edges(red, wrong, width=0) < 0.95 and on_edges(blue, wrong) == 0
    assert on_edges(yellow, found) == 1
    assert 0.4 < on_edges(yellow, missed, width=0) < 0.95
    assert on_edges(blue, missed) == on_edges(red, missed) == 0
    styles = [style for _, _, style in OUTCOME_LEGEND if style != "-"]
    assert len(set(styles)) == len(styles) == 3


def dichromat(color, matrix):
    """A color as seen without one kind of cones (Viénot et al. 1999), in linear RGB."""
    linear = np.asarray(color) ** 2.2
    return np.asarray(matrix) @ linear


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.004, -0.004, 1]],  # protanopia
        [[0.2928, 0.7072, 0], [0.2928, 0.7072, 0], [-0.0223, 0.0223, 1]],  # deuteranopia
    ],
)
def test_color_blind_readers_tell_outcomes_apart(matrix):
    seen = [dichromat(c, matrix) for c in (TRUTH_COLOR, HIT_COLOR, FALSE_POSITIVE_COLOR)]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    green_and_red = [dichromat(c, matrix) for c in ((0.1, 0.9, 0.2), (1, 0.2, 0.15))]
    assert min(apart) > 0.35 and np.linalg.norm(np.subtract(*green_and_red)) < 1


def test_regions_to_ignore_are_gray_dashes_and_what_lies_there_is_no_error():
    lesion, region, inside = (8, 40, 24, 56), (30, 6, 60, 30), (36, 8, 52, 20)
    record = make_record([region, lesion])
    record["annotations"][0]["iscrowd"] = 1
    outcome = match_outcome(record, make_predictions([inside, lesion], [0.9, 0.8]))
    assert outcome.summary() == "1 hit, 0 false positives, 0 missed"
    assert outcome.is_repeat.tolist() == [True, False]
    image = new_visualizer(gray=0).draw_outcome(outcome).get_image()
    assert 0.4 < on_edges(colored(image, REGION_COLOR), region, width=0) < 0.95
    assert not colored(image, FALSE_POSITIVE_COLOR).any()
    image = new_visualizer(gray=0).draw_dataset_dict(record).get_image()
    assert 0.4 < on_edges(colored(image, REGION_COLOR), region, width=0) < 0.95
    assert on_edges(colored(image, TRUTH_COLOR), lesion) == 1


def test_masks_of_predictions_are_laid_over_in_the_color_of_the_outcome():
    boxes, masks = [(8, 8, 30, 30), (36, 36, 60, 60)], np.zeros((2, SIZE, SIZE), np.uint8)
    masks[0, 14:22, 14:22] = masks[1, 44:52, 44:52] = 1
    rles = [mask_util.encode(np.asfortranarray(mask)) for mask in masks]
    predictions = make_predictions(boxes, [0.5, 0.9], pred_masks_rle=rles)
    outcome = match_outcome(make_record([boxes[0]]), predictions)
    image = new_visualizer().draw_outcome(outcome).get_image().astype(int)
    for mask, color in zip(masks, (HIT_COLOR, FALSE_POSITIVE_COLOR), strict=True):
        inside = np.kron(mask, np.ones((SCALE, SCALE))) > 0
        expected = 0.7 * 90 + 0.3 * 255 * np.asarray(color)
        assert np.abs(image[inside] - expected).max() <= 2
        around = cv2.dilate(inside.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        assert (image[around & ~inside] == 90).all()


def test_hard_negatives_are_red_lesions_green_each_with_its_mask():
    lesion, wrong, overlapping = (6, 36, 24, 58), (34, 6, 54, 26), (12, 40, 34, 60)
    masks = np.zeros((3, SIZE, SIZE), np.uint8)
    masks[0, 42:52, 10:18] = masks[1, 12:20, 40:48] = masks[2, 46:56, 26:30] = 1
    rles = [mask_util.encode(np.asfortranarray(mask)) for mask in masks[1:]]
    negatives = make_predictions([wrong, overlapping], [0.876, 0.7], pred_masks_rle=rles)
    negatives.lesion_ious = torch.tensor([0.0, 0.123])
    visualizer = new_visualizer()
    image = visualizer.draw_negatives(make_record([lesion]), negatives, masks[:1] > 0).get_image()
    assert [text.get_text() for text in visualizer.output.ax.texts] == ["0.88/0.00", "0.70/0.12"]
    yellow, red = colored(image, TRUTH_COLOR), colored(image, FALSE_POSITIVE_COLOR)
    assert on_edges(yellow, lesion) > 0.9 and on_edges(yellow, wrong) == 0
    assert min(on_edges(red, wrong), on_edges(red, overlapping)) > 0.9
    for mask, color in zip(masks, [TRUTH_COLOR, *2 * [FALSE_POSITIVE_COLOR]], strict=True):
        inside = np.kron(mask, np.ones((SCALE, SCALE))) > 0
        if color is TRUTH_COLOR:  # an edge of the other box lies on it
            inside &= ~outline(overlapping)
        expected = 0.7 * 90 + 0.3 * 255 * np.asarray(color)
        assert np.abs(image[inside] - expected).max() <= 2


def test_pseudo_labels_are_blue_annotated_ones_yellow_and_hidden_ones_dashed():
    lesion, found, missed = (6, 36, 24, 58), (34, 6, 54, 26), (40, 40, 56, 56)
    record = make_record([lesion])
    hidden = make_record([(36, 8, 52, 24), missed])["annotations"]
    record["hidden_annotations"] = hidden
    visualizer = new_visualizer()
    image = visualizer.draw_pseudo_labels(record, make_predictions([found], [0.937])).get_image()
    assert [text.get_text() for text in visualizer.output.ax.texts] == ["0.94"]
    yellow, blue = colored(image, TRUTH_COLOR), colored(image, PSEUDO_LABEL_COLOR)
    orange = colored(image, HIDDEN_COLOR)
    assert on_edges(yellow, lesion) == 1 and on_edges(yellow, found) == 0
    assert 0.6 < on_edges(blue, found, width=0) < 0.97
    assert on_edges(blue, lesion) == on_edges(blue, missed) == on_edges(yellow, missed) == 0
    assert all(0.4 < on_edges(orange, a["bbox"], width=0) < 0.95 for a in hidden)


def test_an_exact_hit_shows_both_colors():
    box = (20, 20, 44, 44)
    image = new_visualizer().draw_outcome(
        match_outcome(make_record([box]), make_predictions([box], [1.0]))
    )
    image = image.get_image()
    assert on_edges(colored(image, TRUTH_COLOR, 80), box) > 0.95
    assert on_edges(colored(image, HIT_COLOR, 80), box) > 0.95


@pytest.mark.parametrize("box", [(0, 0, 16, 12), (48, 50, 64, 64), (24, 24, 40, 40), (0, 0, 64, 9)])
def test_labels_do_not_cover_lesions_and_stay_in_the_picture(box):
    visualizer = new_visualizer()
    predictions = make_predictions([box, (26, 44, 38, 52)], [0.75, 0.5])
    with_labels = visualizer.draw_outcome(
        match_outcome(make_record([box]), predictions)
    ).get_image()
    texts = visualizer.output.ax.texts
    assert [text.get_text() for text in texts] == ["0.75", "0.50"]

    renderer = visualizer.output.canvas.get_renderer()
    for text in texts:
        area = text.get_bbox_patch().get_window_extent(renderer)
        x0, x1 = area.x0, area.x1
        y0, y1 = SIZE * SCALE - area.y1, SIZE * SCALE - area.y0
        assert min(x0, y0) >= 0 and max(x1, y1) <= SIZE * SCALE
        lesion = displayed(box)
        overlap_x = min(x1, lesion[2]) - max(x0, lesion[0])
        overlap_y = min(y1, lesion[3]) - max(y0, lesion[1])
        assert min(overlap_x, overlap_y) <= 1

    inner = tuple(slice(box[i] * SCALE + 8, box[i + 2] * SCALE - 8) for i in (1, 0))
    assert (with_labels[inner] == 90).all()


def test_class_names_stand_in_labels_only_where_there_are_several():
    for names, expected in ((["lesion"], "0.50"), (["bone", "lung"], "lung 0.50")):
        predictions = make_predictions([(4, 4, 9, 9)], [0.5], pred_classes=torch.tensor([1]))
        visualizer = new_visualizer()
        visualizer.metadata = {"thing_classes": names}
        visualizer.draw_outcome(match_outcome(make_record([]), predictions))
        assert [text.get_text() for text in visualizer.output.ax.texts] == [expected]
    record = make_record([(4, 4, 9, 9), (20, 20, 30, 40)])
    record["annotations"][1].update(category_id=1, diameters_mm=[19.6, 9])
    for names, expected in (
        (["lesion"], ["20 x 9 mm"]),
        (["bone", "lung"], ["bone", "lung, 20 x 9 mm"]),
    ):
        visualizer = new_visualizer()
        visualizer.metadata = {"thing_classes": names}
        visualizer.draw_dataset_dict(record)
        assert [text.get_text() for text in visualizer.output.ax.texts] == expected


def test_zoom_shows_the_lesion_in_the_middle():
    visualizer = new_visualizer()
    visualizer.zoom(np.array([[28.0, 28, 36, 36]]), min_side=16)
    image = visualizer.draw_dataset_dict(make_record([(28, 28, 36, 36)])).get_image()
    rows, columns = np.nonzero(colored(image, TRUTH_COLOR))
    for extent in (rows, columns):  # half of the view's side, in its middle
        assert abs(extent.min() - SIZE) <= 2 and abs(extent.max() - 3 * SIZE) <= 2


@pytest.mark.parametrize(("side", "expected"), [(64, 64), (65, 128), (256, 256), (10, 64)])
def test_pictures_are_enlarged_by_a_whole_factor(side, expected):
    visualizer = LesionVisualizer(np.zeros((SIZE, SIZE, 3)), side=side)
    assert visualizer.get_output().get_image().shape == (expected, expected, 3)


def test_judge_sorts_and_filters_detections_and_keeps_their_masks():
    masks = torch.zeros(4, SIZE, SIZE, dtype=torch.bool)
    for i in range(4):
        masks[i, i] = True
    boxes = [(0, 0, 10, 10), (40, 40, 50, 50), (0, 0, 10, 9), (20, 20, 30, 30)]
    predictions = make_predictions(boxes, [0.6, 0.1, 0.9, 0.3], pred_masks=masks)
    outcome = match_outcome(make_record([boxes[0], boxes[1]]), predictions, score_threshold=0.3)
    assert outcome.predictions.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert outcome.is_hit.tolist() == [True, False, False]
    assert outcome.is_false_positive.tolist() == [False, False, True]
    assert outcome.is_repeat.tolist() == [False, True, False]
    assert outcome.is_found.tolist() == [True, False]
    assert outcome.predictions.pred_masks.any(dim=2).float().argmax(dim=1).tolist() == [2, 0, 3]
    assert outcome.summary() == "1 hit, 1 false positive, 1 missed"


def test_quality_is_the_documented_measure():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = rng.uniform(0, 40, (6, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 24, (6, 2))], axis=1)
        truth, scores = boxes[:2].tolist(), rng.uniform(0, 1, 4)
        predictions = [*boxes[2:5].tolist(), (boxes[0] + 1).tolist()]
        outcome = match_outcome(make_record(truth), make_predictions(predictions, scores.tolist()))
        best = [
            max(slow_iou(t, p) * s for p, s in zip(predictions, scores, strict=True)) for t in truth
        ]
        wrong = sum(all(slow_iou(t, p) < 0.5 for t in truth) for p in predictions)
        assert outcome.quality == pytest.approx(np.mean(best) / (1 + wrong), rel=1e-4)


def test_quality_without_lesions_or_detections():
    none = make_predictions([], [])
    assert outcome_quality(match_outcome(make_record([(1, 1, 9, 9)]), none)) == 0
    assert math.isnan(outcome_quality(match_outcome(make_record([]), none)))
    assert (
        outcome_quality(match_outcome(make_record([]), make_predictions([(1, 1, 9, 9)], [0.4])))
        == 0
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dicom"], None),
        (["lung"], WINDOWS["lung"]),
        (["-160", "240"], (-160.0, 240.0)),
    ],
)
def test_words_are_parsed_as_windows(words, expected):
    assert parse_window(words) == expected


@pytest.mark.parametrize(
    "words", [["brian"], ["5"], ["240", "-160"], ["1", "2", "3"], ["nan", "1"]]
)
def test_bad_windows_are_named(words):
    with pytest.raises(
        ValueError, match=rf"window: found '{' '.join(words)}', expected one of dicom"
    ):
        parse_window(words)


def test_window_image_reads_the_slice_in_the_wanted_window(tmp_path):
    hu = np.array([[-1000, -100], [0, 100]])
    write_slice(tmp_path / "001.png", hu)
    record = make_record(
        [], file_name=str(tmp_path / "001.png"), window=(-100.0, 100.0), height=2, width=2
    )
    assert window_image(record)[:, :, 0].tolist() == [[0, 0], [128, 255]]
    image = window_image(record, (-1000.0, 0.0))
    assert image.shape == (2, 2, 3) and image.dtype == np.uint8
    assert image[:, :, 2].tolist() == [[0, 230], [255, 255]]


def test_pictures_are_stacked_at_the_left():
    small, large = np.full((2, 3, 3), 50, np.uint8), np.full((1, 5, 3), 70, np.uint8)
    stacked = stack_pictures([small, large])
    assert stacked[..., 0].tolist() == [[50] * 3 + [0] * 2] * 2 + [[70] * 5]


def test_a_grid_divides_its_box():
    visualizer = new_visualizer()
    image = visualizer.draw_grid((7.5, 15.5, 31.5, 31.5), rows=2, columns=3).get_image()
    changed = (image != 90).any(axis=2)
    for x in (8, 16, 24, 32):
        assert changed[16 * SCALE : 32 * SCALE, x * SCALE - 1 : x * SCALE + 1].any(axis=1).all()
    for y in (16, 24, 32):
        assert changed[y * SCALE - 1 : y * SCALE + 1, 8 * SCALE : 32 * SCALE].any(axis=0).all()
    assert not changed[17 * SCALE : 23 * SCALE, 9 * SCALE : 15 * SCALE].any()
    assert not changed[:, 33 * SCALE :].any() and not changed[: 15 * SCALE].any()


def test_a_color_bar_stands_between_its_numbers():
    bar = color_bar(0.25, 0.5, 200)
    assert bar.shape == (24, 200, 3)
    colors = bar[12, 48:152].astype(int)
    ends = [255 * np.array(mpl.colormaps["plasma"](x)[:3]) for x in (0, 0.72)]
    assert np.abs(colors[[0, -1]] - ends).max() <= 2
    assert (np.diff(colors[:, 0]) >= 0).all()  # ever redder
    for side in (bar[:, :46], bar[:, 154:]):
        assert (side > 200).all(axis=2).any()  # a number's letters
    assert (color_bar(0.25, 0.9, 200)[:, :152] == bar[:, :152]).all()


def test_contact_sheet_holds_every_tile_unchanged_in_order():
    tiles = [np.full((60, 200, 3), 40 + 30 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(tiles, [f"tile {i}" for i in range(5)], OUTCOME_LEGEND, columns=2)
    assert sheet.shape[1] == 2 * 200 + 3 * 8
    places = []
    for i in range(5):
        rows, columns = np.nonzero((sheet == 40 + 30 * i).all(axis=2))
        row, column = np.median(rows), np.median(columns)
        block = sheet[round(row) - 25 : round(row) + 25, round(column) - 90 : round(column) + 90]
        assert (block == 40 + 30 * i).all()
        places.append((int(row) // 60, int(column) // 200))
        assert (sheet[round(row) - 65 : round(row) - 32] > 200).any()  # the title's letters
    assert places == sorted(places) and len(set(places)) == 5
    legend = sheet[-40:]
    for color in (TRUTH_COLOR, HIT_COLOR, FALSE_POSITIVE_COLOR):
        assert colored(sheet[-90:], color).any()
    assert (legend > 200).all(axis=2).any()


def test_contact_sheet_needs_a_title_for_every_tile():
    with pytest.raises(ValueError, match="found 1 pictures and 2 titles"):
        contact_sheet([np.zeros((9, 9, 3), np.uint8)], ["a", "b"], [])


@pytest.mark.parametrize(("spacing", "zoomed", "expected"), [(1, False, 10), (0.8, True, 2)])
def test_the_scale_bar_is_as_long_as_it_says(spacing, zoomed, expected):
    record = make_record([], spacing=(spacing, spacing, 5.0), window=(-160.0, 240.0))
    visualizer = new_visualizer(**slice_marks(record))
    if zoomed:  # 16 of 64 pixels: the bar is drawn anew
        visualizer.zoom(np.array([[30.0, 30, 34, 34]]), min_side=16)
    image = visualizer.get_output().get_image()
    texts = [text.get_text() for text in visualizer.output.ax.texts]
    assert texts == ["-160 to 240 HU", f"{expected} mm"]
    pixels = expected / spacing * SCALE * (4 if zoomed else 1)
    row = (image[-12:-4] > 240).all(axis=2).any(axis=0)
    assert abs(row[SIZE * SCALE // 2 :].sum() - pixels) <= 2
    assert not row[-7:].any() and row[-12]


def test_without_spacing_there_is_no_scale_bar():
    visualizer = new_visualizer(**slice_marks({"window": (0.0, 80.0)}, (-160.0, 240.0)))
    assert [text.get_text() for text in visualizer.output.ax.texts] == ["-160 to 240 HU"]
    assert not visualizer.output.ax.lines
    assert slice_marks({"spacing": np.array([0.8, 0.8, 5.0])})["pixel_spacing"] == 0.8
    assert bar_length(0) == 0 and bar_length(3) == 0 and bar_length(160) == 20


def test_images_without_findings_say_so():
    for draw, expected in (
        (
            lambda v: v.draw_outcome(match_outcome(make_record([]), make_predictions([], []))),
            "no findings",
        ),
        (lambda v: v.draw_dataset_dict(make_record([])), "no lesions"),
    ):
        visualizer = new_visualizer()
        draw(visualizer)
        assert [text.get_text() for text in visualizer.output.ax.texts] == [expected]
    assert match_outcome(make_record([]), make_predictions([], [])).summary() == "no findings"


def test_pages_for_print_are_white_and_have_their_notes():
    tile = np.full((60, 300, 3), 40, np.uint8)
    options = {"notes": ["one sentence " * 8, "another"], "style": PAGE_STYLES["paper"]}
    page = contact_sheet([tile, tile], ["a", "b"], OUTCOME_LEGEND, **options)
    black = contact_sheet([tile, tile], ["a", "b"], OUTCOME_LEGEND)
    lines = 2 + 1
    assert page.shape[0] == black.shape[0] + 18 * lines + 8
    assert (page[:, -1] == 255).all() and (black[:, -1] == 0).all()
    assert (page[-18 * lines :] < 60).all(axis=2).sum() > 200  # black letters
    bar = color_bar(0, 1, 200, PAGE_STYLES["paper"])
    assert (bar[:, 0] == 255).all() and (bar[:, :46] < 60).all(axis=2).any()


def test_save_picture_writes_what_it_was_given(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = save_picture(image, tmp_path / "new" / "a.png")
    assert (cv2.imread(path)[:, :, ::-1] == image).all()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
