"""What the benchmark measures of boxes."""

from pathlib import Path

import lesion_d2
from lesion_d2.evaluation import froc_curve
from lesion_d2.experiments.benchmark import inputs
from lesion_d2.experiments.benchmark.boxes import (
    anchors,
    boxes3d,
    clustering,
    evaluation,
    froc,
    linking,
)
from lesion_d2.experiments.benchmark.timing import Times

import numpy as np
import pytest
from detectron2.data import DatasetCatalog


def test_the_published_loop_gives_the_same_curve():
    rng = np.random.default_rng(1)
    lesions = list(inputs.random_boxes(rng, (20, 2)))
    boxes = [np.concatenate([g + 2, inputs.random_boxes(rng, (1, 5))[0]]) for g in lesions]
    lesions[3] = np.empty((0, 4))
    scores = list(rng.uniform(0, 1, (20, 7)))
    sensitivity, rate = froc.froc_loop(boxes, scores, lesions)
    curve = froc_curve(boxes, scores, lesions)
    assert sensitivity == pytest.approx(curve.sensitivity)
    assert rate == pytest.approx(curve.fps_per_image)
    assert sensitivity[-1] == 1 and rate[-1] == pytest.approx((20 * 5 + 2) / 20)


def test_real_boxes_are_looked_for_beside_the_project():
    data = Path(lesion_d2.__file__).parents[2] / "shared" / "data"
    assert data / "deeplesion_val_boxes.csv" == anchors.BOXES


def test_froc_rows_compare_both_curves():
    first, second = froc.measure_froc(num_images=30, per_image=4)
    assert first.limit is None and first.unit == "s"
    assert second.limit == 20 and second.at_least
    assert "differ by at most 0" in second.note


def test_evaluation_rows_compare_with_detectron2(monkeypatch):
    works = []

    def peak_memory(work, cfg):
        works.append(work)
        work(cfg)
        return 10.0 * len(works)

    def time_calls(calls, *, repeats, warm_up=1):
        asked.append((repeats, warm_up))
        for call in calls:
            call()
        return [Times(cpu_seconds=[2.0] * repeats) for _ in calls]

    asked = []
    evaluator = evaluation.LesionEvaluator
    monkeypatch.setattr(
        evaluation, "LesionEvaluator", lambda name, *_, **__: evaluator(name, num_bootstrap=0)
    )
    monkeypatch.setattr(evaluation, "peak_memory", peak_memory)
    monkeypatch.setattr(evaluation, "time_calls", time_calls)
    names = DatasetCatalog.list()
    rows = list(evaluation.measure_evaluation(6, 5, 8, per_image=7))
    precisions, whole, memory, most, most_memory, growth = rows
    assert "numbers differ by at most 0" in precisions.note
    assert [row.limit for row in rows] == [0.1, 0.4, 0.5, None, None, 1.2]
    assert memory.measured == 0.5 and memory.note == "10 against 20 MiB, 5 images"
    assert most_memory.measured == 30 and works[2] is works[0]
    assert (precisions.measured, whole.measured, most.measured, growth.measured) == (1, 1, 2, 0.25)
    assert asked == [(3, 1), (3, 1), (1, 0)] and DatasetCatalog.list() == names


def test_clustering_rows_compare_both_ways():
    first, scattered, ratio = clustering.measure_clustering(num_images=2, num_views=5, per_view=40)
    assert (
        first.limit is None and first.unit == "s" and "2 images x 5 views x 40 boxes" in first.note
    )
    assert scattered.limit is None and scattered.measured > 0
    assert float(ratio.note.split("at most ")[1]) < 1e-9 and ratio.measured > 0
    assert ratio.limit == 3.7 and ratio.at_least


def test_rows_of_boxes_in_3d_compare_with_what_is_written_out():
    rows = list(boxes3d.measure_boxes3d(num_boxes=60, num_views=3, per_view=20, num_regions=3))
    notes = {row.name: row.note for row in rows}
    assert "the same as in a plain loop" in notes["NMS in 3-D at 0.5, 60 boxes, cpu"]
    for name in ("clustering in 3-D", "RoIAlign in 3-D, cpu"):
        assert float(notes[f"plain loop / {name}"].split("at most ")[1]) < 1e-5
    assert all(row.measured > 0 for row in rows)


def test_linking_rows_say_what_was_linked():
    tracks, scattered, merging = linking.measure_linking(num_slices=20, per_slice=3)
    assert tracks.limit == scattered.limit == 4 and merging.limit is None
    assert "20 slices x 3 boxes" in tracks.note
    # Three lesions on slices 1 to 10 and three on the others, few of them broken or joined.
    assert 5 <= int(tracks.note.split()[-2]) <= 9 and merging.measured > 0


def test_anchors_are_searched_for_drawn_boxes_where_the_real_ones_are_not(tmp_path, monkeypatch):
    drawn = anchors.draw_boxes()
    assert np.median(drawn[:, 0]) == pytest.approx(27.6, rel=0.05)
    assert np.quantile(drawn[:, 0], 0.9) == pytest.approx(57, rel=0.1)
    monkeypatch.setattr(anchors, "NUM_BOXES", 300)
    time, iou = anchors.measure_anchors(tmp_path / "none.csv", repeats=1)
    assert time.limit == 3 and "300 boxes, random" in time.note
    assert iou.limit is None and iou.measured > 0.85
    file = tmp_path / "boxes.csv"
    file.write_text("x1,y1,x2,y2\n" + "0,0,20,30\n" * 3)
    time, iou = anchors.measure_anchors(file, repeats=1)
    assert iou.limit == 0.884 and iou.measured == pytest.approx(1) and "3 boxes" in time.note
