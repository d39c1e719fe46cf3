import json

from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.engine import InputError, LesionPredictor, Trainer, load_config, load_model
from lesion_d2.engine.checks import check_inputs
from lesion_d2.inference import Ensemble
from lesion_d2.visualization import LesionVisualizer, match_outcome, window_image

import pytest
import torch
from detectron2.data import DatasetCatalog
from tiny_run import tiny_args, tiny_config

import train_net

ENSEMBLE = {"TEST__ENSEMBLE__ENABLED": True}


def _config(folder, **changes):
    return tiny_config(
        OUTPUT_DIR=str(folder / "output"), MODEL__RETINANET__SCORE_THRESH_TEST=0.0, **changes
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with the weights of two models, 0.pth and 1.pth, which a best.json ranks."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(
            {"model": Trainer.build_model(tiny_config()).state_dict()}, folder / f"{seed}.pth"
        )
    entry = {"metric": "bbox/AP50", "value": 1.0, "iteration": 0, "run_id": "a"}
    ranking = [{"file": f"{seed}.pth", **entry} for seed in (1, 0)]
    (folder / "best.json").write_text(json.dumps(ranking))
    return folder


def _is_model(model, file) -> bool:
    expected = torch.load(file, weights_only=True)["model"]
    found = model.state_dict()
    return set(found) == set(expected) and all(
        torch.equal(found[k], v) for k, v in expected.items()
    )


def test_without_an_ensemble_it_is_the_model(weights, tmp_path):
    model = load_model(_config(tmp_path, MODEL__WEIGHTS=weights / "1.pth"))
    assert _is_model(model, weights / "1.pth") and not model.training


def test_an_ensemble_of_one_model_goes_by_the_keys(weights, tmp_path):
    keys = {"MIRRORS": False, "TILE_SIZE": 48, "TILE_OVERLAP": 0.25, "CONSOLIDATION": "nms"}
    changes = {f"TEST__ENSEMBLE__{key}": value for key, value in keys.items()}
    cfg = _config(
        tmp_path,
        MODEL__WEIGHTS=weights / "1.pth",
        TEST__ENSEMBLE__TILE_IOU_THRESH=0.3,
        TEST__DETECTIONS_PER_IMAGE=7,
        **ENSEMBLE,
        **changes,
    )
    ensemble = load_model(cfg)
    assert isinstance(ensemble, Ensemble) and len(ensemble.models) == 1
    assert _is_model(ensemble.models[0], weights / "1.pth") and not ensemble.models[0].training
    assert ensemble.view_options == {"mirrors": False, "tile_size": 48, "tile_overlap": 0.25}
    settings = ensemble.consolidation, ensemble.iou_threshold, ensemble.max_detections
    assert settings == ("nms", 0.3, 7)


def test_files_and_folders_are_the_models(weights, tmp_path):
    checkpoints = (str(weights / "0.pth"), str(weights))
    ensemble = load_model(_config(tmp_path, TEST__ENSEMBLE__CHECKPOINTS=checkpoints, **ENSEMBLE))
    files = [weights / f"{seed}.pth" for seed in (0, 1, 0)]
    assert len(ensemble.models) == 3
    assert all(_is_model(*pair) for pair in zip(ensemble.models, files, strict=True))


@pytest.mark.parametrize("changes", [{}, ENSEMBLE])
def test_resumed_it_has_the_last_checkpoint(weights, tmp_path, changes):
    cfg = _config(tmp_path, MODEL__WEIGHTS=weights / "1.pth", **changes)
    model = load_model(cfg, resume=True)  # there is none yet
    assert _is_model(getattr(model, "models", [model])[0], weights / "1.pth")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "last.pth").write_bytes((weights / "0.pth").read_bytes())
    (tmp_path / "output" / "last_checkpoint").write_text("last.pth")
    model = load_model(cfg, resume=True)
    assert _is_model(getattr(model, "models", [model])[0], weights / "0.pth")


@pytest.mark.parametrize("changes", [{}, ENSEMBLE])
def test_the_predictor_finds_what_the_model_finds(tiny_phantom, weights, tmp_path, changes):
    cfg = _config(tmp_path, MODEL__WEIGHTS=weights / "1.pth", INPUT__CT__IMAGE_SIZE=96, **changes)
    cfg.freeze()
    predictor = LesionPredictor(cfg)
    record = DatasetCatalog.get("phantom_test")[0]
    before = json.dumps(record, default=str)
    instances = predictor(record)["instances"]
    assert json.dumps(record, default=str) == before
    assert instances.image_size == (64, 64) and len(instances) > 10

    sample = LesionDatasetMapper(cfg, False)(record)
    assert sample["image"].shape[1:] == (96, 96)
    with torch.no_grad():
        expected = load_model(cfg)([sample])[0]["instances"]
    assert torch.equal(instances.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(instances.scores, expected.scores)

    # As the docstring's example.
    third = instances.scores[2].item()
    assert predictor.metadata.evaluator_type == "lesion"

    visualizer = LesionVisualizer(window_image(record), predictor.metadata)
    blank = visualizer.get_output().get_image().copy()
    visualizer.draw_outcome(match_outcome(record, instances.to("cpu"), score_threshold=third))
    assert (visualizer.get_output().get_image() != blank).any()


def test_a_training_and_the_ensemble_of_its_best(tiny_phantom, tmp_path):
    keys = {"TEST__EVAL_PERIOD": 1, "TEST__NUM_BEST_CHECKPOINTS": 2, "SOLVER__MAX_ITER": 2}
    train_net.main(tiny_args(tmp_path / "run", **keys))
    keys = {"TEST__ENSEMBLE__CHECKPOINTS": (str(tmp_path / "run" / "best"),), **ENSEMBLE}
    keys["MODEL__RETINANET__SCORE_THRESH_TEST"] = 0.0
    results = train_net.main(tiny_args(tmp_path / "test", "--eval-only", **keys))
    assert {"bbox", "froc"} <= set(results)
    folder = tmp_path / "test" / "inference" / "phantom_val"
    written = json.loads((folder / "coco_instances_results.json").read_text())
    record = DatasetCatalog.get("phantom_val")[0]
    cfg = load_config(tiny_args(tmp_path / "test", **keys))
    scores = LesionPredictor(cfg)(record)["instances"].scores
    written = [each["score"] for each in written if each["image_id"] == record["image_id"]]
    assert len(written) > 0 and written == pytest.approx(scores.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "flags, changes, message",
    [
        *(
            (flags, {f"TEST__ENSEMBLE__{key}": value}, f"TEST.ENSEMBLE.{key}: found {value!r}, exp")
            for flags in ((), ("--eval-only",))
            for key, value in (
                ("TILE_SIZE", -1),
                ("TILE_OVERLAP", 1.0),
                ("CONSOLIDATION", "mean"),
                ("IOU_THRESH", 1.0),
                ("IOU_THRESH", -0.1),
            )
        ),
        ((), {"TEST__NUM_BEST_CHECKPOINTS": -1}, "TEST.NUM_BEST_CHECKPOINTS: found -1, expected 0"),
        (
            (),
            {"TEST__NUM_BEST_CHECKPOINTS": 2, "DATASETS__TEST": ()},
            "DATASETS.TEST: found .., expected a data set.*TEST.NUM_BEST_CHECKPOINTS is 2",
        ),
        (
            ("--eval-only",),
            {"TEST__ENSEMBLE__CHECKPOINTS": ("a.pth",)},
            r"TEST.ENSEMBLE.ENABLED: found False, expected True .*CHECKPOINTS is .*a.pth",
        ),
        (
            ("--eval-only",),
            {"TEST__ENSEMBLE__CHECKPOINTS": ("gone.pth",), **ENSEMBLE},
            "TEST.ENSEMBLE.CHECKPOINTS: gone.pth: no such weight file",
        ),
        (
            ("--eval-only",),
            {"TEST__ENSEMBLE__CHECKPOINTS": ("",), **ENSEMBLE},
            "TEST.ENSEMBLE.CHECKPOINTS: found ''",
        ),
        (
            ("--eval-only", "--resume"),
            {"TEST__ENSEMBLE__CHECKPOINTS": ("a.pth",), **ENSEMBLE},
            "--resume: found TEST.ENSEMBLE.CHECKPOINTS too",
        ),
        (("--eval-only",), ENSEMBLE, "MODEL.WEIGHTS: found none"),
    ],
)
def test_bad_keys_are_one_line(tiny_phantom, tmp_path, flags, changes, message):
    args = tiny_args(tmp_path, *flags, **changes)
    with pytest.raises(InputError, match=message) as error:
        check_inputs(load_config(args), args)
    assert "\n" not in str(error.value)


def test_checkpoints_are_checked_before_the_evaluation(tiny_phantom, weights, tmp_path):
    def check(*checkpoints, flags=("--eval-only",), **changes):
        keys = {"TEST__ENSEMBLE__CHECKPOINTS": tuple(map(str, checkpoints)), **ENSEMBLE, **changes}
        args = tiny_args(tmp_path, *flags, **keys)
        check_inputs(load_config(args), args)

    check(weights, weights / "0.pth")  # without MODEL.WEIGHTS
    check(tmp_path / "not_yet", flags=())  # a training does not need them
    empty, broken = tmp_path / "empty", tmp_path / "broken.pth"
    empty.mkdir()
    broken.write_bytes(b"PK\x03\x04 half")
    other = tmp_path / "other.pth"
    state = torch.load(weights / "0.pth", weights_only=True)["model"]
    name = next(name for name in state if name.endswith("cls_score.weight"))
    torch.save({"model": {**state, name: state[name].repeat(2, 1, 1, 1)}}, other)
    for path, message in (
        (empty, "best.json: no such file"),
        (broken, "broken.pth: found no complete checkpoint"),
        (other, "other.pth: found head.cls_score.weight .*: another number of classes or anchors"),
    ):
        with pytest.raises(InputError, match=f"TEST.ENSEMBLE.CHECKPOINTS: .*{message}"):
            check(weights, path)
