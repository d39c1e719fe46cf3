"""Training, evaluation and prediction with a model of volumes."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

from lesion_d2.data.volumetric import volume_records
from lesion_d2.engine import LesionPredictor, Trainer, load_model, predict_scan
from lesion_d2.engine.predictors.ensembles import as_evaluated
from lesion_d2.evaluation import VolumeEvaluator
from lesion_d2.findings import OperatingPoint, decode_mask
from lesion_d2.inference import VolumeEnsemble
from lesion_d2.inference.views import ViewDetections
from lesion_d2.scans import Scan, SliceSource
from lesion_d2.tools.predict.__main__ import main as predict

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from distributed_run import train_volumes
from slice_files import write_slices
from tiny_volume_run import NAME, SHAPE, SPACING, balls, volume_args
from warm_processes import launch_two

import train_net

TEST_SET = f"{NAME}_volumes_val"
# A hardly trained model is sure of nothing.
UNSURE = {"MODEL__RETINANET__SCORE_THRESH_TEST": 0.0, "TEST__DETECTIONS_PER_IMAGE": 12}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a training of four iterations, evaluated after each two."""
    root = tmp_path_factory.mktemp("volumetric")
    with balls(root / "balls"):
        train_net.main(volume_args(root / "run", TEST__NUM_BEST_CHECKPOINTS=2, **UNSURE))
        yield root / "run"


def read_detections(folder):
    content = json.loads((folder / "inference" / TEST_SET / "volumes.json").read_text())
    assert content["settings"]["linking"] is None
    return content["detections"]


def test_a_training_is_evaluated_on_whole_volumes_and_goes_on(run):
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert sum("volume/AP10" in line for line in lines) == 2
    assert (run / "model_best.pth").exists() and len(list((run / "best").glob("*.pth"))) == 2
    found = read_detections(run)
    names = {d["volume"] for d in found}
    assert names == {d["volume"] for d in DatasetCatalog.get(TEST_SET)}
    boxes = np.array([d["box3d"] for d in found])
    assert (boxes[:, [2, 5]] >= -1e-3).all() and (boxes[:, [2, 5]] <= SHAPE[0] - 1 + 1e-3).all()
    # Of volumes, not of the patches that training looks at.
    assert boxes[:, 3].max() > 33 and boxes[:, 5].max() > 16


def test_a_resumed_run_goes_on_with_the_next_volumes(run):
    options = {"SOLVER__MAX_ITER": 6, "TEST__NUM_BEST_CHECKPOINTS": 2, **UNSURE}
    trainer = Trainer(train_net.setup(volume_args(run, "--resume", **options)))
    whole = list(itertools.islice(trainer.loader, 6))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4
    rest = list(itertools.islice(trainer.loader, 2))
    ids = [[[sample["image_id"] for sample in b] for b in batches] for batches in (whole, rest)]
    assert ids[0][4:] == ids[1]
    assert len({name for batch in ids[0] for name in batch}) > 3


def test_an_ensemble_of_the_best_checkpoints_and_mirrored_tiles(run, tmp_path):
    options = {
        "TEST__ENSEMBLE__ENABLED": True,
        "TEST__ENSEMBLE__CHECKPOINTS": (str(run / "best"),),
        "TEST__VOLUME_TILE_SIZE": (20, 40, 48),
        **UNSURE,
    }
    args = volume_args(tmp_path, "--eval-only", **options)
    ensemble = load_model(train_net.setup(args))
    assert isinstance(ensemble, VolumeEnsemble) and len(ensemble.models) == 2
    assert ensemble.view_options == {
        "mirrors": True,
        "tile_size": (20, 40, 48),
        "tile_overlap": 0.5,
    }
    assert ensemble.iou_threshold == 1e-5 and ensemble.num_mirrors == 8
    results = train_net.main(args)
    assert 0 <= results["volume"]["sens@16"] <= 100 and len(read_detections(tmp_path)) > 4


@pytest.fixture(scope="module")
def predictor(run):
    args = volume_args(
        run,
        "--eval-only",
        MODEL__WEIGHTS=run / "model_final.pth",
        MODEL__SEG_HEAD__PREDICT_MASKS=True,
        **UNSURE,
    )
    return LesionPredictor(train_net.load_config(args))


@pytest.fixture(scope="module")
def scan(predictor):
    """The first volume of the test set, as a scan in memory."""
    record = volume_records(DatasetCatalog.get(TEST_SET))[0]
    volume = predictor.mapper(record)["reader"].read((0, 0, 0), SHAPE)
    return Scan(
        name=record["volume"],
        volume=volume,
        spacing=SPACING,
        origin=np.array([-10.0, 20.0, 30.0]),
        direction=np.diag([1.0, 1.0, -1.0]),
        sources=tuple(SliceSource(f"{index}.png") for index in range(len(volume))),
        format="png",
    )


def test_findings_of_a_scan_are_those_of_an_evaluation(run, predictor, scan, tmp_path):
    record = volume_records(DatasetCatalog.get(TEST_SET))[0]
    evaluator = VolumeEvaluator(TEST_SET, tmp_path, link=None, distributed=False)
    sample, output = predictor.mapper(record), predictor(record)
    evaluator.process([sample], [output])
    evaluator.evaluate()
    expected = json.loads((tmp_path / "volumes.json").read_text())["detections"]
    # Without masks the same as in the training's own evaluation.
    assert expected == [d for d in read_detections(run) if d["volume"] == record["volume"]]

    # A segmentation that hardly learned: it finds all that is bright.
    calls = []
    found = predict_scan(predictor, scan, on_slice=lambda: calls.append(0)).findings
    assert len(calls) == SHAPE[0]
    assert [f.score for f in found] == [d["score"] for d in expected] and len(found) > 2
    for finding, detection in zip(found, expected, strict=True):
        box = detection["box3d"]
        np.testing.assert_array_equal(
            np.array(finding.box)[[0, 1, 3, 4]], np.array(box)[[0, 1, 3, 4]]
        )
        numbers = [part.slice_index for part in finding.slices]
        # From the first to the last slice whose center the box has inside.
        inside = [n for n in range(SHAPE[0]) if box[2] - 0.5 <= n <= box[5] + 0.5]
        assert numbers == inside and [finding.box[2], finding.box[5]] == [numbers[0], numbers[-1]]
        assert finding.measured_on == "box"
    point = OperatingPoint(found[1].score, 0.5, "volume", TEST_SET)
    fewer = predict_scan(predictor, scan, score_threshold=point)
    assert fewer.findings == found[:2] and fewer.operating_point == point
    assert fewer.algorithm.meta_architecture == "RetinaUNet3D"


def test_the_command_line_goes_by_the_evaluation_of_volumes(run, scan, tmp_path):
    folder = write_slices(tmp_path / "scan", scan.volume)
    options = ["--config-file", str(run / "config.yaml")]
    options += ["--input", str(folder), "--spacing", ",".join(map(str, SPACING))]
    options += ["--report", "none", "MODEL.WEIGHTS", str(run / "model_final.pth")]
    expected = [d["score"] for d in read_detections(run) if d["volume"] == scan.name]
    for i, rate in enumerate(((), ("--fps-per-volume", "4"))):  # by default 0.5
        output = tmp_path / str(i)
        assert predict([*rate, "--output", str(output), *options]) == 0
        content = json.loads((output / "scan" / "findings.json").read_text())
        point = content["operating_point"]
        assert point["unit"] == "volume" and point["dataset"] == TEST_SET
        scores = [finding["score"] for finding in content["findings"]]
        assert scores == [score for score in expected if score >= point["score_threshold"]]
    assert 0 < len(scores) <= len(expected)


def test_masks_of_findings_are_those_of_their_slices(predictor, scan, monkeypatch):
    """With masks that are drawn: an untrained segmentation finds nothing."""
    [model] = predictor.model.models
    masks = {}

    def forward(batched_inputs, look=model.forward):
        outputs = look(batched_inputs)
        for output, sample in zip(outputs, batched_inputs, strict=True):
            found = output["instances"]
            found.scores[1:] = 0.0
            shape = tuple(sample["image"].shape[1:])
            found.pred_masks = torch.zeros(len(found), *shape, dtype=torch.bool)
            found.pred_masks[:, 2:6, 5:15, 7:20] = True
            found.pred_masks[:, 3, 5, 7] = False
            masks["first"] = found.pred_masks[0]
        return outputs

    monkeypatch.setattr(model, "forward", forward)
    shallow = replace(scan, volume=scan.volume[:16, :32, :32], sources=scan.sources[:16])
    finding = predict_scan(predictor, shallow).findings[0]
    assert finding.measured_on == "mask"
    drawn = {part.slice_index: decode_mask(part.mask) for part in finding.slices if part.mask}
    assert sorted(drawn) == [2, 3, 4, 5]
    for number, mask in drawn.items():
        np.testing.assert_array_equal(mask, masks["first"][number].numpy())
    assert finding.volume_mm3 == pytest.approx((4 * 130 - 1) * np.prod(SPACING))


def test_a_mirrored_volume_has_the_mirrored_views(predictor, scan):
    """Of a real model in tiles: the eight views are the same ones in another order."""
    shape = 16, 40, 40
    volume = torch.tensor(scan.volume[:16, :40, :40]).float() / 8 + 120
    [model] = predictor.model.models
    ensemble = VolumeEnsemble([model], tile_size=(16, 24, 24), tile_overlap=0.3)

    def views(array) -> ViewDetections:
        return ensemble.views({"reader": _InMemory(array)})

    found, mirrored = views(volume), views(volume.flip(0, 2))
    boxes = mirrored.instances.pred_boxes.tensor.clone()
    for axis, side in ((0, shape[2]), (2, shape[0])):
        boxes[:, [axis, axis + 3]] = side - 1 - boxes[:, [axis + 3, axis]]
    # Tile (row, column) and view m of the one are (row, 1 - column) and m + 5, bits of x and z.
    tile, mirror = mirrored.view_ids // 8, mirrored.view_ids % 8
    twins = (tile ^ 1) * 8 + (mirror ^ 0b101)
    assert len(boxes) == len(found.instances) > 20
    for view in found.view_ids.unique():
        one, other = found.view_ids == view, twins == view
        torch.testing.assert_close(
            found.instances.pred_boxes.tensor[one], boxes[other], rtol=1e-4, atol=1e-3
        )
        torch.testing.assert_close(found.instances.scores[one], mirrored.instances.scores[other])


class _InMemory:
    def __init__(self, volume):
        self.volume, self.shape, self.source_shape = (
            volume,
            tuple(volume.shape),
            tuple(volume.shape),
        )

    def load(self, start, size, device):
        (z, y, x), (d, h, w) = start, size
        return self.volume[z : z + d, y : y + h, x : x + w]

    def to_source(self, boxes):
        return boxes


def test_a_model_of_volumes_is_evaluated_in_tiles_and_back_in_training_after_it(run):
    cfg = train_net.setup(volume_args(run, "--eval-only", MODEL__WEIGHTS=run / "model_final.pth"))
    model = Trainer.build_model(cfg).train()
    with_tiles = as_evaluated(cfg, model)
    assert with_tiles.view_options == {
        "mirrors": False,
        "tile_size": (16, 32, 32),
        "tile_overlap": 0.5,
    }
    assert as_evaluated(cfg, with_tiles) is with_tiles and not model.training
    Trainer.test(cfg, model.train(), [_Ignorant()])
    assert model.training


class _Ignorant(VolumeEvaluator):
    """Of no interest in what is found."""

    def __init__(self):
        """It needs no data set."""

    def reset(self):
        pass

    def process(self, inputs, outputs):
        assert len(inputs) == 1 and outputs[0]["instances"].image_size == SHAPE

    def evaluate(self):
        return {}


def test_two_processes_train_one_model_and_evaluate_as_one_does(run, tmp_path):
    options = {"MODEL__WEIGHTS": run / "model_final.pth", **UNSURE}
    args = volume_args(tmp_path, SOLVER__MAX_ITER=2, TEST__EVAL_PERIOD=0, **options)
    evaluated = volume_args(tmp_path / "two", "--eval-only", **options)
    root = str(run.parent / "balls")
    launch_two(train_volumes, root, NAME, args, evaluated, str(tmp_path / "sums"))
    sums = json.loads((tmp_path / "sums").read_text())
    assert sums[0]["weights"] == sums[1]["weights"] != sums[0]["before"]
    assert set(sums[0]["volumes"]).isdisjoint(sums[1]["volumes"])
    assert read_detections(tmp_path / "two") == read_detections(run)
