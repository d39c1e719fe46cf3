import copy
import itertools
import json

from lesion_d2.data.pseudo_masks import ellipse_mask
from lesion_d2.engine import Trainer, load_config
from lesion_d2.engine.trainer import best_metric_name

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_util
from run_training import losses_of, train
from tiny_run import stopping_args, tiny_args, tiny_config, uldor_args

import train_net


def _metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_a_run_writes_its_checkpoints_and_metrics(tiny_phantom, tmp_path):
    train_net.main(tiny_args(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model_0000001.pth", "model_0000003.pth", "model_final.pth", "model_best.pth"} <= names
    assert "best" not in names  # without TEST.NUM_BEST_CHECKPOINTS
    assert "config.yaml" in names and any(name.startswith("events.out") for name in names)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert (tmp_path / "inference" / "phantom_val" / "froc.json").is_file()
    logged = {key for line in _metrics(tmp_path) for key in line}
    assert {"total_loss", "loss_cls", "loss_box_reg", "loss_seg", "lr", "bbox/AP50"} <= logged
    assert any(key.startswith("froc/") for key in logged)


_MASKS = {"MODEL__SEG_HEAD__PREDICT_MASKS": True, "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0}


@pytest.mark.parametrize(
    "args, changes",
    [(tiny_args, _MASKS), (uldor_args, {"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0})],
)
def test_masks_are_computed_and_written_only_where_they_are_scored_or_asked_for(
    tiny_phantom, tmp_path, args, changes
):
    def evaluate(dataset: str, **options) -> tuple[dict, list[dict]]:
        options = {"TEST__WRITE_MASKS": False, **options}
        options = {**changes, "DATASETS__TEST": (dataset,), **options}
        cfg = load_config(args(tmp_path / "output", **options))
        seen.clear()
        results = Trainer.test(cfg, model)
        folder = tmp_path / "output" / "inference" / dataset
        return results, json.loads((folder / "coco_instances_results.json").read_text())

    torch.manual_seed(0)
    model = Trainer.build_model(load_config(args(tmp_path, **changes)))
    seen = []
    model.register_forward_hook(
        lambda _, __, outputs: seen.extend(o["instances"].has("pred_masks") for o in outputs)
    )
    results, detections = evaluate("phantom_val")
    assert len(detections) > 0 and seen and not any(seen)
    asked_results, asked = evaluate("phantom_val", TEST__WRITE_MASKS=True)
    assert all(seen) and str(asked_results) == str(results)  # some are NaN
    assert all(detection.pop("segmentation")["size"] == [64, 64] for detection in asked)
    assert asked == detections

    dicts = copy.deepcopy(DatasetCatalog.get("phantom_val"))
    for annotation in (a for image in dicts for a in image["annotations"]):
        mask = np.asfortranarray(ellipse_mask(annotation["recist"], 64, 64), dtype=np.uint8)
        annotation["segmentation"] = mask_util.encode(mask)
    DatasetCatalog.register("phantom_masks", lambda: dicts)
    MetadataCatalog.get("phantom_masks").set(evaluator_type="lesion", thing_classes=["lesion"])
    try:
        scored_results, scored = evaluate("phantom_masks")
    finally:
        DatasetCatalog.remove("phantom_masks")
        MetadataCatalog.remove("phantom_masks")
    assert all(seen) and "AP50" in scored_results.pop("segm")
    assert str(scored_results) == str(results)
    assert all(detection.pop("segmentation")["size"] == [64, 64] for detection in scored)
    assert scored == detections


def test_the_same_seed_gives_the_same_training(tiny_phantom, tmp_path):
    options = {"TEST__EVAL_PERIOD": 0, "DATASETS__TEST": (), "INPUT__AUG__MAX_ROTATION": 0.1}
    first = losses_of(train(tiny_args(tmp_path / "1", **options)))
    again = losses_of(train(tiny_args(tmp_path / "2", **options)))
    other = losses_of(train(tiny_args(tmp_path / "3", SEED=4, **options)))
    assert first == again
    assert first != other


def test_a_resumed_run_goes_on_with_iteration_optimizer_and_metrics(tiny_phantom, tmp_path):
    train(tiny_args(tmp_path, SOLVER__MAX_ITER=3))
    with open(tmp_path / "metrics.json", "a") as file:  # what a killed run wrote after it
        file.write('{"iteration": 3, "total_loss": 1.0}\n{"iteration": 4, "total')
    resumed = train(tiny_args(tmp_path, "--resume", SOLVER__MAX_ITER=6))
    assert resumed.start_iter == 3 and resumed.iter == 6
    assert {int(state["step"]) for state in resumed.optimizer.state.values()} == {6}
    assert resumed.scheduler.last_epoch == 6
    lines = _metrics(tmp_path)
    assert [line["iteration"] for line in lines if "total_loss" in line] == [1, 2, 3, 5]
    assert [line["iteration"] for line in lines if "bbox/AP50" in line] == [1, 3, 3, 6]
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == 5


def _images_of(args) -> list[str]:
    """The images of each training batch of a run, in their order."""
    trainer = Trainer(train_net.setup(args))
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda model, inputs: seen.extend(sample["image_id"] for sample in inputs[0])
    )
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return seen


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_next_images(tiny_phantom, tmp_path, num_workers):
    options = {"TEST__EVAL_PERIOD": 0, "DATASETS__TEST": (), "DATALOADER__NUM_WORKERS": num_workers}
    whole = _images_of(tiny_args(tmp_path / "whole", SOLVER__MAX_ITER=6, **options))
    begun = _images_of(tiny_args(tmp_path / "halves", SOLVER__MAX_ITER=3, **options))
    resumed = _images_of(tiny_args(tmp_path / "halves", "--resume", SOLVER__MAX_ITER=6, **options))
    assert len(whole) == 24 and len(begun) == 12
    assert begun + resumed == whole


def test_a_resumed_run_without_a_seed_goes_on_in_the_order_that_was_drawn(tiny_phantom, tmp_path):
    options = {"TEST__EVAL_PERIOD": 0, "DATASETS__TEST": (), "SEED": -1}
    options |= {"SOLVER__CHECKPOINT_PERIOD": 2, "SOLVER__MAX_ITER": 3}

    whole = _images_of(tiny_args(tmp_path, **options))
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    resumed = _images_of(tiny_args(tmp_path, "--resume", **options))
    other = _images_of(tiny_args(tmp_path / "other", **options))

    assert len(resumed) == 4 and resumed == whole[8:]
    assert other != whole  # each run draws its own


def test_scaling_to_other_numbers_of_processes_scales_all_periods(tiny_phantom):
    cfg = tiny_config(
        SOLVER__REFERENCE_WORLD_SIZE=1,
        SOLVER__MAX_ITER=160,
        TEST__LOSS_PERIOD=10,
        HARD_NEGATIVES__PERIOD=8,
        HARD_NEGATIVES__START_ITER=16,
    )
    scaled = Trainer.auto_scale_workers(cfg, 4)
    assert scaled.SOLVER.MAX_ITER == 40
    assert scaled.TEST.LOSS_PERIOD == 3
    assert (scaled.HARD_NEGATIVES.PERIOD, scaled.HARD_NEGATIVES.START_ITER) == (2, 4)
    assert Trainer.auto_scale_workers(cfg, 1) is cfg


def test_the_loader_is_restarted_with_hard_negatives(tiny_phantom, tmp_path):
    args = uldor_args(tmp_path, TEST__EVAL_PERIOD=0, DATASETS__TEST=(), DATALOADER__NUM_WORKERS=1)
    trainer = Trainer(train_net.setup(args))
    batches = list(itertools.islice(trainer.loader, 3))
    assert {c for b in batches for s in b for c in s["instances"].gt_classes.tolist()} == {0}

    names = [sample["image_id"] for sample in batches[1]]
    mask = np.zeros((64, 64), dtype=np.uint8, order="F")
    mask[10:20, 30:40] = 1
    negative = {
        "bbox": [30.0, 10.0, 39.0, 19.0],
        "category_id": 1,
        "segmentation": mask_util.encode(mask),
    }
    trainer.restart_loader(1, {name: [negative] for name in names})
    again = next(iter(trainer.loader))
    assert [sample["image_id"] for sample in again] == names
    for sample, before in zip(again, batches[1], strict=True):
        assert sample["instances"].gt_classes.tolist() == [*before["instances"].gt_classes, 1]

    trainer.restart_loader(2)  # keeps them
    assert [sample["file_name"] for sample in next(iter(trainer.loader))] == [
        sample["file_name"] for sample in batches[2]
    ]
    assert trainer.loader.mapper.hard_negatives


_EVERYTHING = {
    "TEST__LOSS_PERIOD": 1,
    "SOLVER__PLATEAU_PATIENCE": 1,
    "SOLVER__EARLY_STOP_PATIENCE": 2,
    "HARD_NEGATIVES__PERIOD": 1,
}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"DATASETS__TEST": ()}, "EvalHook CatchUpHook EvaluationWriter TrainingCurvesHook"),
        ({}, "EvalHook ResumableBestCheckpointer CatchUpHook EvaluationWriter TrainingCurvesHook"),
        (
            {"DATASETS__TEST": (), "HARD_NEGATIVES__PERIOD": 1},
            "EvalHook HardNegativeMiningHook CatchUpHook EvaluationWriter TrainingCurvesHook",
        ),
        (
            _EVERYTHING,
            "EvalHook ValidationLossHook ResumableBestCheckpointer PlateauHook EarlyStopHook "
            "HardNegativeMiningHook CatchUpHook EvaluationWriter TrainingCurvesHook",
        ),
    ],
)
def test_hooks_after_the_checkpoint_come_in_their_order(tiny_phantom, tmp_path, changes, expected):
    trainer = Trainer(train_net.setup(uldor_args(tmp_path, **changes)))
    names = [type(hook).__name__ for hook in trainer.build_hooks()]
    assert names[names.index("RecentCheckpointer") + 1 :] == expected.split()


def test_a_run_that_mines_without_a_test_set_is_resumed_with_its_negatives(tiny_phantom, tmp_path):
    options = {
        "DATASETS__TEST": (),
        "TEST__EVAL_PERIOD": 0,
        "HARD_NEGATIVES__PERIOD": 2,
        "SOLVER__CHECKPOINT_PERIOD": 2,
    }
    train(uldor_args(tmp_path, SOLVER__MAX_ITER=4, **options))
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    state = final["trainer"]["hooks"]["HardNegativeMiningHook"]
    assert state["mined_at"] == 1 and state["negatives"]  # none after the last iteration
    resumed = train(uldor_args(tmp_path, "--resume", SOLVER__MAX_ITER=5, **options))
    # The resumed run has an iteration after the fourth, so it mines before it.
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["trainer"]["hooks"]["HardNegativeMiningHook"]["mined_at"] == 3
    assert [i for _, i in resumed.storage.history("hard_negatives/number").values()] == [3]


def test_resuming_a_run_that_is_done_evaluates_it_again(tiny_phantom, tmp_path):
    train(tiny_args(tmp_path))
    before = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    results = tmp_path / "inference" / "phantom_val" / "coco_instances_results.json"
    detections = results.read_text()
    results.unlink()
    resumed = train(tiny_args(tmp_path, "--resume"))
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert results.read_text() == detections


def test_a_run_that_does_not_get_better_slows_down_and_stops(tiny_phantom, tmp_path):
    expected = [["bbox", "AP50", 0.0, 100.0]]  # whatever it is
    trainer = Trainer(train_net.setup(stopping_args(tmp_path, TEST__EXPECTED_RESULTS=expected)))
    results = trainer.train()
    assert results["bbox"]["AP50"] == trainer.storage.latest()["bbox/AP50"][0]
    values = trainer.storage.history("bbox/AP50").values()
    assert [iteration for _, iteration in values] == [0, 1, 2]
    assert len({value for value, _ in values}) == 1
    rates = [rate for rate, _ in trainer.storage.history("lr").values()]
    assert rates == pytest.approx([1e-12, 1e-12, 1e-13], rel=1e-6, abs=0)
    last = _metrics(tmp_path)[-1]
    assert last["iteration"] == 2 and {"total_loss", "bbox/AP50"} <= set(last)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 2
    assert "Exception during training" not in (tmp_path / "log.txt").read_text()


def test_resuming_a_run_that_stopped_evaluates_it_again(tiny_phantom, tmp_path):
    stopped = train(stopping_args(tmp_path))
    before = len((tmp_path / "log.txt").read_text())
    resumed = train(stopping_args(tmp_path, "--resume"))
    assert {int(state["step"]) for state in resumed.optimizer.state.values()} == {3}
    assert _same_weights(resumed, stopped)
    assert [iteration for _, iteration in resumed.storage.history("bbox/AP50").values()] == [2]
    log = (tmp_path / "log.txt").read_text()[before:]
    assert log.count("Training ends early, after iteration 2: bbox/AP50 was not better") == 1
    assert [line["iteration"] for line in _metrics(tmp_path) if "total_loss" in line] == [0, 1, 2]


def test_a_run_killed_in_an_evaluation_loses_nothing(tiny_phantom, tmp_path, monkeypatch):
    options = {"SOLVER__CHECKPOINT_PERIOD": 1}
    whole = train(stopping_args(tmp_path / "whole", **options))
    evaluate = Trainer.test.__func__

    def killed(cls, *args, **kwargs):
        if (tmp_path / "killed" / "model_0000001.pth").exists():
            raise KeyboardInterrupt
        return evaluate(cls, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "test", classmethod(killed))
        train(stopping_args(tmp_path / "killed", **options))
    resumed = train(stopping_args(tmp_path / "killed", "--resume", **options))
    assert resumed.start_iter == 2 and resumed.iter == whole.iter == 2
    rates = [rate for rate, _ in resumed.storage.history("lr").values()]
    assert rates == pytest.approx([1e-13], rel=1e-6, abs=0)
    final = [
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["trainer"]["hooks"]
        for name in ("whole", "killed")
    ]
    for name in ("PlateauHook", "EarlyStopHook", "LRScheduler"):
        assert final[0][name] == final[1][name]


def _same_weights(one: Trainer, other: Trainer) -> bool:
    weights = other.model.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.model.state_dict().items())


def test_the_best_metric_of_several_data_sets_is_the_first_one_s(tiny_phantom, tmp_path):
    train(tiny_args(tmp_path, DATASETS__TEST=("phantom_val", "phantom_test")))
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["best"]
    assert best["metric"] == "phantom_val/bbox/AP50"
    values = [
        line["phantom_val/bbox/AP50"]
        for line in _metrics(tmp_path)
        if "phantom_val/bbox/AP50" in line
    ]
    assert best["value"] == max(values)


@pytest.mark.parametrize(
    "names, metric, expected",
    [
        (("a",), "bbox/AP50", "bbox/AP50"),
        (("a", "b"), "froc/sens@4", "a/froc/sens@4"),
        (("a", "b"), "b/bbox/AP50", "b/bbox/AP50"),
    ],
)
def test_best_metric_name(names, metric, expected):
    cfg = tiny_config(DATASETS__TEST=names, TEST__BEST_METRIC=metric)
    assert best_metric_name(cfg) == expected


def test_mixed_precision_on_the_cpu_trains_float32_weights_to_nearly_the_same_loss(
    tiny_phantom, tmp_path
):
    options = {"TEST__EVAL_PERIOD": 0, "DATASETS__TEST": ()}
    full = train(tiny_args(tmp_path / "full", **options))
    mixed = train(tiny_args(tmp_path / "mixed", SOLVER__AMP__ENABLED=True, **options))
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    assert losses_of(mixed) != losses_of(full)  # bfloat16 was used: 8 bits of precision
    assert losses_of(mixed) == pytest.approx(losses_of(full), rel=0.02)


def test_precise_bn_updates_the_statistics_before_the_evaluation(tiny_phantom, tmp_path):
    options = {"MODEL__RESNETS__NORM": "BN", "TEST__PRECISE_BN__NUM_ITER": 2}
    trainer = train(tiny_args(tmp_path, TEST__PRECISE_BN__ENABLED=True, **options))
    assert any(type(hook).__name__ == "PreciseBN" for hook in trainer.build_hooks())
    values = trainer.model.backbone.bottom_up.stages[0][1].running_var
    assert torch.isfinite(values).all() and not torch.equal(values, torch.ones_like(values))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_optimizers_clip_gradients_and_leave_norms_undecayed(name):
    cfg = tiny_config(
        SOLVER__OPTIMIZER=name,
        SOLVER__BASE_LR=0.5,
        SOLVER__WEIGHT_DECAY=0.1,
        SOLVER__WEIGHT_DECAY_NORM=0.0,
        SOLVER__CLIP_GRADIENTS__CLIP_VALUE=1.0,
    )
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False), torch.nn.BatchNorm2d(1))
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, getattr(torch.optim, name))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(model[0].weight)] == 0.1 and decay[id(model[1].weight)] == 0.0
    assert {g["lr"] for g in optimizer.param_groups} == {0.5}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1000.0)
    optimizer.step()
    assert all(p.grad.norm() <= 1.001 for p in model.parameters())


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_layers_and_biases_have_their_own_learning_rates(name):
    """As in 3DCE's network: 3 and 2 times for two layers, and twice without decay for biases."""
    cfg = tiny_config(
        SOLVER__OPTIMIZER=name,
        SOLVER__BASE_LR=0.5,
        SOLVER__MOMENTUM=0.7,
        SOLVER__WEIGHT_DECAY=0.1,
        SOLVER__WEIGHT_DECAY_BIAS=0.0,
        SOLVER__BIAS_LR_FACTOR=2.0,
        SOLVER__LR_FACTORS=[["pooler.maps", 3.0], ["fc1", 2.0]],
    )
    layers = {"maps": torch.nn.Linear(1, 1), "fc1": torch.nn.Linear(1, 1)}
    model = torch.nn.ModuleDict({"pooler": torch.nn.ModuleDict(layers), "maps": layers["fc1"]})
    model["fc10"] = torch.nn.Linear(1, 1)
    optimizer = Trainer.build_optimizer(cfg, model)
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    found = {n: groups[id(p)]["lr"] for n, p in model.named_parameters() if "weight" in n}

    assert found == {"pooler.maps.weight": 1.5, "pooler.fc1.weight": 1.0, "fc10.weight": 0.5}
    for parameter, decay in ((layers["fc1"].bias, 0.0), (layers["fc1"].weight, 0.1)):
        assert groups[id(parameter)]["weight_decay"] == decay
    assert {groups[id(p)]["lr"] for n, p in model.named_parameters() if "bias" in n} == {1.0}
    assert all(g.get("momentum") == 0.7 for g in optimizer.param_groups) == (name == "SGD")


def test_factors_of_layers_that_do_not_exist_are_refused():
    cfg = tiny_config(SOLVER__LR_FACTORS=[["fc", 2.0]])
    with pytest.raises(ValueError, match=r"SOLVER.LR_FACTORS: found 'fc', expected a layer of Seq"):
        Trainer.build_optimizer(cfg, torch.nn.Sequential(torch.nn.Linear(1, 1)))


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER: found 'Lion', expected one of SGD"):
        Trainer.build_optimizer(tiny_config(SOLVER__OPTIMIZER="Lion"), torch.nn.Linear(1, 1))


def test_a_data_set_without_an_evaluation_is_refused_before_the_training(tmp_path):
    cfg = tiny_config(OUTPUT_DIR=tmp_path, DATASETS__TEST=("coco_2017_val",))
    with pytest.raises(ValueError, match="coco_2017_val: found evaluator_type 'coco'"):
        Trainer(cfg)
    with pytest.raises(ValueError, match="coco_2017_val: found evaluator_type 'coco'"):
        Trainer.build_evaluator(cfg, "coco_2017_val")


def test_an_overridden_evaluator_may_be_a_static_method():
    class Own(Trainer):
        @staticmethod
        def build_evaluator(cfg, dataset_name):
            raise AssertionError("not called in this test")

        @classmethod
        def auto_scale_workers(cls, cfg, num_workers):
            raise InterruptedError  # right after the check of evaluator types

    with pytest.raises(InterruptedError):
        Own(tiny_config(DATASETS__TEST=("coco_2017_val",)))
