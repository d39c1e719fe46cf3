import json

from lesion_d2.engine import LesionPredictor, Trainer, load_config
from lesion_d2.tools.compare_consolidation import main, time_call

import pytest
import torch
from detectron2.data import DatasetCatalog
from tiny_run import CONFIG, tiny_args

pytestmark = pytest.mark.usefixtures("no_curves")
OPTIONS = {
    "DATASETS.TEST": ("phantom_test", "phantom_val"),
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 30,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Trainer.build_model(load_config(tiny_args("output")))
        paths.append(str(tmp_path_factory.mktemp("weights") / f"{seed}.pth"))
        torch.save({"model": model.state_dict()}, paths[-1])
    return paths


def _results(args, dataset):
    """The evaluator's results, and detections per image, of what the config predicts."""
    cfg = load_config(args)
    cfg.OUTPUT_DIR += "/expected"
    predictor, evaluator = LesionPredictor(cfg), Trainer.build_evaluator(cfg, dataset)
    evaluator.reset()
    counts = []
    for record in DatasetCatalog.get(dataset):
        output = predictor(record)
        counts.append(len(output["instances"]))
        evaluator.process([record], [output])
    return evaluator.evaluate(), sum(counts) / len(counts)


def test_the_gpu_is_waited_for_where_the_model_is_on_it(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for device in ("cpu", "cuda", "cuda:1"):
        assert time_call(torch.device(device), max, [1, 3], default=0)[0] == 3
    assert waited == [torch.device("cuda"), torch.device("cuda:1")]


def test_each_line_is_the_evaluation_of_its_predictor(tiny_phantom, weights, tmp_path, capsys):
    views = {"TEST.ENSEMBLE.CHECKPOINTS": tuple(weights), "TEST.ENSEMBLE.IOU_THRESH": 0.4}
    args = tiny_args(tmp_path, **OPTIONS, **views)
    assert main(["--config-file", str(CONFIG), *args.opts]) == 0

    output = capsys.readouterr().out
    output = output[output.index("phantom_test: 2 models") :]  # after the log
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["num_models"] == 2 and written["mirrors"] and written["iou_threshold"] == 0.4
    assert list(written["datasets"]) == ["phantom_test", "phantom_val"]

    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in output.splitlines()
        if line.startswith("|")
    ]
    assert len(lines) == 10 and lines[0] == lines[5]
    assert lines[0][:9] == ["", "AP10", "AP50", *(f"sens@{r}" for r in ("0.5", 1, 2, 4, 8, 16))]

    seen = []
    for dataset, table in (("phantom_test", lines[2:5]), ("phantom_val", lines[7:])):
        assert f"{dataset}: 2 models, 4 mirrors" in output
        for line, row in zip(table, written["datasets"][dataset], strict=True):
            changes = {"TEST.ENSEMBLE.ENABLED": True, **views}
            if row["name"] == "first model":
                changes = {"MODEL.WEIGHTS": weights[0]}
            else:
                changes["TEST.ENSEMBLE.CONSOLIDATION"] = row["name"]
            expected, detections = _results(tiny_args(tmp_path, **OPTIONS, **changes), dataset)
            assert row["detections"] == pytest.approx(detections)
            assert len(row["metrics"]) == 8
            for key, value in row["metrics"].items():
                task, metric = key.split("/")
                assert value == pytest.approx(expected[task][metric], abs=1e-6)
            cells = [row["name"], *row["metrics"].values(), detections]
            assert line[:10] == [c if isinstance(c, str) else f"{c:.1f}" for c in cells]
            assert row["views_ms"] > 0
            assert (row["consolidation_ms"] is None) == (row["name"] == "first model")
            seen.append(tuple(row["metrics"].values()))
            folder = tmp_path / row["name"].replace(" ", "_") / "inference" / dataset
            assert (folder / "froc.json").is_file()
    assert [line[0] for line in lines[2:5]] == ["first model", "wbc", "nms"]
    assert len(set(seen)) > 2  # the numbers are not all the same


def test_bad_input_is_one_line(tiny_phantom, tmp_path, capsys):
    views = {"TEST.ENSEMBLE.CHECKPOINTS": ("gone.pth",)}
    arguments = ["--config-file", str(CONFIG), *tiny_args(tmp_path / "new", **views).opts]
    assert main(arguments) == 1
    stderr = capsys.readouterr().err.splitlines()
    assert stderr[-1].startswith("lesion_d2.tools.compare_consolidation: error: TEST.ENSEMBLE")
    assert not (tmp_path / "new").exists()
