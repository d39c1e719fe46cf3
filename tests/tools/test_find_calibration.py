from lesion_d2.data.loader import build_lesion_test_loader
from lesion_d2.engine import load_config
from lesion_d2.evaluation import froc_curve
from lesion_d2.modeling.calibration import calibrate_scores, mask_agreement
from lesion_d2.tools.find_calibration import main

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from tiny_run import CONFIG, PROJECT, tiny_args

RATES = (1, 20, 30, 40, 60)


@pytest.fixture(scope="module")
def options():
    """KEY VALUE pairs of a tiny model, all of whose scores pass."""
    settings = ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "TEST.INCLUSIVE_BOXES", "True"]
    return [*tiny_args("output").opts, *settings]


def _config(options, strength):
    args = tiny_args("output")
    args.opts = [*options, "MODEL.RETINA_UNET.CALIBRATION", str(strength)]
    return load_config(args)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, options):
    """Two checkpoints of random weights, whose segmentation says lesion here and there."""
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model(_config(options, 0.0))
        torch.nn.init.zeros_(model.seg_predictor.bias)
        paths.append(str(tmp_path_factory.mktemp("weights") / f"{seed}.pth"))
        torch.save({"model": model.state_dict()}, paths[-1])
    return paths


def _expected(options, path, strength):
    """Sensitivities in percent, of the model's own detections, calibrated here."""
    cfg = _config(options, 0.0)
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    model.predict_masks = True
    predict, logits = model.predict_segmentation, []
    model.predict_segmentation = lambda *inputs: logits.append(predict(*inputs)) or logits[-1]
    truth = {r["image_id"]: r["annotations"] for r in DatasetCatalog.get("phantom_train")}
    boxes, scores, gt_boxes = [], [], []
    for (sample,) in build_lesion_test_loader(cfg, "phantom_train"):
        with torch.no_grad():
            found = model([sample])[0]["instances"]
        masks = logits[-1].softmax(dim=1)[0, 1:] > 0.5
        agreement = mask_agreement(found.pred_boxes.tensor, found.pred_classes, masks, margin=5.0)
        boxes.append(found.pred_boxes.tensor.numpy())
        scores.append(calibrate_scores(found.scores, agreement, strength).numpy())
        gt_boxes.append(np.array([a["bbox"] for a in truth[sample["image_id"]]]))
    return 100 * froc_curve(boxes, scores, gt_boxes, inclusive=True).at(RATES)


def test_a_line_a_strength_with_mean_and_spread_over_checkpoints(
    tiny_phantom, options, weights, capsys
):
    arguments = ["--config-file", str(CONFIG), "--weights", *weights, "--dataset", "phantom_train"]
    arguments += ["--strengths", "0", "1", "--rates", *map(str, RATES), "--opts", *options]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "phantom_train, checkpoints: 2" in output
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in output.splitlines()[2:]]
    assert lines[0] == ["strength", "1", "20", "30", "40", "60"]
    tables = []
    for line, strength in zip(lines[2:], (0.0, 1.0), strict=True):
        values = np.array([_expected(options, path, strength) for path in weights])
        tables.append(values)
        spread = values.std(axis=0, ddof=1)
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(values.mean(axis=0), spread, strict=True)]
        assert line == [f"{strength:g}", *cells]
    assert tables[0].max() > 0 and not np.array_equal(*tables)


def test_bad_input_is_one_line(tiny_phantom, options, weights, capsys):
    config = ["--config-file", str(CONFIG), "--opts", *options]
    retinanet = [
        "--config-file",
        str(PROJECT / "configs" / "improved_retinanet" / "retinanet_phantom.yaml"),
    ]

    for arguments, message in (
        (
            [*config, "--weights", "gone.pth", "--dataset", "phantom_train"],
            "gone.pth: no such weight file",
        ),
        ([*config, "--weights", *weights, "--dataset", "mine"], "'mine', which is not registered"),
        (
            [*retinanet, "--weights", *weights, "--dataset", "phantom_train"],
            "found 'LesionRetinaNet', expected 'RetinaUNet'",
        ),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error and error.splitlines()[-1].startswith("error: ")
    with pytest.raises(SystemExit):
        main([*config, "--weights", *weights, "--dataset", "phantom_train", "--strengths", "1.5"])
    assert "found 1.5, expected 0 to 1" in capsys.readouterr().err
