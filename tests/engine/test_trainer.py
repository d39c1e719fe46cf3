import json

from lesion_d2.engine import Trainer
from lesion_d2.engine.trainer import best_metric_name, has_unused_parameters

import pytest
import torch
from detectron2.utils.events import EventStorage
from tiny_run import stopping_args, tiny_args, tiny_config

import train_net


def _losses(trainer: Trainer) -> list[float]:
    return [loss for loss, _ in trainer.storage.history("total_loss").values()]


def _train(args) -> Trainer:
    trainer = Trainer(train_net.setup(args))
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return trainer


def _metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_a_run_writes_its_checkpoints_and_metrics(tiny_phantom, tmp_path):
    train_net.main(tiny_args(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model_0000001.pth", "model_0000003.pth", "model_final.pth", "model_best.pth"} <= names
    assert "config.yaml" in names and any(name.startswith("events.out") for name in names)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert (tmp_path / "inference" / "phantom_val" / "froc.json").is_file()
    logged = {key for line in _metrics(tmp_path) for key in line}
    assert {"total_loss", "loss_cls", "loss_box_reg", "loss_seg", "lr", "bbox/AP50"} <= logged
    assert any(key.startswith("froc/") for key in logged)


def test_the_same_seed_gives_the_same_training(tiny_phantom, tmp_path):
    options = {"TEST__EVAL_PERIOD": 0, "DATASETS__TEST": (), "INPUT__AUG__MAX_ROTATION": 0.1}
    first = _losses(_train(tiny_args(tmp_path / "1", **options)))
    again = _losses(_train(tiny_args(tmp_path / "2", **options)))
    other = _losses(_train(tiny_args(tmp_path / "3", SEED=4, **options)))
    assert first == again
    assert first != other


def test_a_resumed_run_goes_on_with_iteration_optimizer_and_metrics(tiny_phantom, tmp_path):
    _train(tiny_args(tmp_path, SOLVER__MAX_ITER=3))
    with open(tmp_path / "metrics.json", "a") as file:  # what a killed run wrote after it
        file.write('{"iteration": 3, "total_loss": 1.0}\n{"iteration": 4, "total')
    resumed = _train(tiny_args(tmp_path, "--resume", SOLVER__MAX_ITER=6))
    assert resumed.start_iter == 3 and resumed.iter == 6
    assert {int(state["step"]) for state in resumed.optimizer.state.values()} == {6}
    assert resumed.scheduler.last_epoch == 6
    lines = _metrics(tmp_path)
    assert [line["iteration"] for line in lines if "total_loss" in line] == [2, 5]
    assert [line["iteration"] for line in lines if "bbox/AP50" in line] == [1, 3, 3, 6]
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == 5


def test_resuming_a_run_that_is_done_evaluates_it_again(tiny_phantom, tmp_path):
    _train(tiny_args(tmp_path))
    before = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    results = tmp_path / "inference" / "phantom_val" / "coco_instances_results.json"
    detections = results.read_text()
    results.unlink()
    resumed = _train(tiny_args(tmp_path, "--resume"))
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert results.read_text() == detections


def test_a_run_that_does_not_get_better_slows_down_and_stops(tiny_phantom, tmp_path):
    expected = [["bbox", "AP50", 0.0, 100.0]]  # whatever it is
    trainer = Trainer(train_net.setup(stopping_args(tmp_path, TEST__EXPECTED_RESULTS=expected)))
    results = trainer.train()
    assert results is trainer._last_eval_results and "AP50" in results["bbox"]
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
    stopped = _train(stopping_args(tmp_path))
    before = len((tmp_path / "log.txt").read_text())
    resumed = _train(stopping_args(tmp_path, "--resume"))
    assert {int(state["step"]) for state in resumed.optimizer.state.values()} == {3}
    assert _same_weights(resumed, stopped)
    assert [iteration for _, iteration in resumed.storage.history("bbox/AP50").values()] == [2]
    log = (tmp_path / "log.txt").read_text()[before:]
    assert log.count("Training ends early, after iteration 2: bbox/AP50 was not better") == 1
    assert [line["iteration"] for line in _metrics(tmp_path) if "total_loss" in line] == [2]


def test_a_run_killed_in_an_evaluation_loses_nothing(tiny_phantom, tmp_path, monkeypatch):
    options = {"SOLVER__CHECKPOINT_PERIOD": 1}
    whole = _train(stopping_args(tmp_path / "whole", **options))
    evaluate = Trainer.test.__func__

    def killed(cls, *args, **kwargs):
        if (tmp_path / "killed" / "model_0000001.pth").exists():
            raise KeyboardInterrupt
        return evaluate(cls, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "test", classmethod(killed))
        _train(stopping_args(tmp_path / "killed", **options))
    resumed = _train(stopping_args(tmp_path / "killed", "--resume", **options))
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
    _train(tiny_args(tmp_path, DATASETS__TEST=("phantom_val", "phantom_test")))
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
    full = _train(tiny_args(tmp_path / "full", **options))
    mixed = _train(tiny_args(tmp_path / "mixed", SOLVER__AMP__ENABLED=True, **options))
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    assert _losses(mixed) != _losses(full)  # bfloat16 was used: 8 bits of precision
    assert _losses(mixed) == pytest.approx(_losses(full), rel=0.02)


def test_precise_bn_updates_the_statistics_before_the_evaluation(tiny_phantom, tmp_path):
    options = {"MODEL__RESNETS__NORM": "BN", "TEST__PRECISE_BN__NUM_ITER": 2}
    trainer = _train(tiny_args(tmp_path, TEST__PRECISE_BN__ENABLED=True, **options))
    assert any(type(hook).__name__ == "PreciseBN" for hook in trainer._hooks)
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


_VGG = {"MODEL__VGG__DEPTH": 16, "MODEL__VGG__WIDTH": 4, "MODEL__BACKBONE__FREEZE_AT": 0}
_VGG_FPN = {
    **_VGG,
    "MODEL__BACKBONE__NAME": "build_vgg_fpn_backbone",
    "MODEL__META_ARCHITECTURE": "RetinaNet",
}
_VGG_UNET_FPN = {
    **_VGG,
    "MODEL__BACKBONE__NAME": "build_vgg_unet_fpn_backbone",
    "MODEL__UNET_FPN__ATTENTION": True,
}


@pytest.mark.parametrize(
    "changes, bottom_up, levels",
    [
        ({}, None, "2345"),
        ({"MODEL__RETINA_UNET__SEG_LOSS_WEIGHT": 0.0}, None, "2345"),
        ({}, None, "234"),
        ({}, None, "345"),  # P2 is used by the segmentation
        ({"MODEL__META_ARCHITECTURE": "RetinaNet"}, None, "2345"),
        (_VGG_FPN, "345", "34567"),
        (_VGG_FPN, "2345", "23456"),
        (_VGG_FPN, "2345", "3456"),
        (_VGG_FPN, "234", "234"),  # C5 is computed all the same
        (_VGG_UNET_FPN, "2345", "23456"),
        ({**_VGG_UNET_FPN, "MODEL__RETINA_UNET__SEG_LOSS_WEIGHT": 0.0}, "2345", "23456"),
        ({**_VGG_UNET_FPN, "MODEL__META_ARCHITECTURE": "RetinaNet"}, "2345", "23456"),
    ],
)
def test_parameters_without_gradients_are_known_beforehand(
    tiny_phantom, changes, bottom_up, levels
):
    cfg = tiny_config(**changes, MODEL__RETINANET__IN_FEATURES=[f"p{level}" for level in levels])
    if bottom_up is not None:
        cfg.MODEL.FPN.IN_FEATURES = [f"c{level}" for level in bottom_up]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16.0]] * len(levels)
    model = Trainer.build_model(cfg)
    with EventStorage():
        sum(model(next(iter(Trainer.build_train_loader(cfg)))).values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert has_unused_parameters(model) == bool(without), without


def test_unknown_optimizer():
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER: found 'Lion', expected one of SGD"):
        Trainer.build_optimizer(tiny_config(SOLVER__OPTIMIZER="Lion"), torch.nn.Linear(1, 1))


def test_an_evaluator_is_for_lesions_only(tmp_path):
    with pytest.raises(ValueError, match="coco_2017_val: found evaluator_type 'coco'"):
        Trainer.build_evaluator(tiny_config(), "coco_2017_val")
