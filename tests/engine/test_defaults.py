import logging
import os
import shutil

from lesion_d2.engine import InputError, load_config, prepare_launch
from lesion_d2.engine.defaults import check_inputs

import detectron2
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from tiny_run import tiny_args, tiny_config

import train_net


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"SOLVER__MAX_ITERS": 3}, r"Non-existent.* key: SOLVER.MAX_ITERS"),
        ({"SOLVER__MAX_ITER": "many"}, r"Type mismatch.*SOLVER.MAX_ITER"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(changes, message):
    with pytest.raises(InputError, match=message) as error:
        load_config(tiny_args("output", **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("SOLVER: {MAX_ITERS: 3}\nVERSION: 2", "Non-existent config key: SOLVER.MAX_ITERS"),
        ("SOLVER: [", "while parsing"),
        ('_BASE_: "gone.yaml"', "gone.yaml"),
        (None, "does not exist"),
    ],
)
def test_a_bad_config_file_is_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    args = tiny_args("output")
    args.config_file = str(path)
    with pytest.raises(InputError, match=message) as error:
        load_config(args)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    "flags, changes, message",
    [
        (
            (),
            {"DATASETS__TRAIN": ("phantom_trian",)},
            "TRAIN: found 'phantom_trian'.*_train",
        ),
        ((), {"DATASETS__TRAIN": ()}, "DATASETS.TRAIN: found no data set"),
        ((), {"DATASETS__TEST": ("deeplesion_val",)}, "DATASETS.TEST, deeplesion_val: .*DL_info"),
        ((), {"SOLVER__OPTIMIZER": "Lion"}, "SOLVER.OPTIMIZER: found 'Lion'"),
        ((), {"MODEL__WEIGHTS": "gone.pth"}, "MODEL.WEIGHTS: gone.pth: no such file"),
        (("--num-gpus", "3"), {}, "SOLVER.IMS_PER_BATCH: found 4, expected a multiple of the 3"),
        (("--eval-only",), {}, "--eval-only: found no MODEL.WEIGHTS"),
        (("--eval-only", "--resume"), {}, "--eval-only: found no MODEL.WEIGHTS"),
        ((), {"INPUT__PSEUDO_MASK": "magic"}, "INPUT.PSEUDO_MASK: found 'magic'"),
        ((), {"INPUT__PSEUDO_MASK_FILES": ("gone.json",)}, "gone.json"),
        ((), {"INPUT__CT__NUM_SLICES": 5}, "PIXEL_MEAN has 3 values.* expected 5"),
        ((), {"INPUT__CT__HU_WINDOW": (400.0, -300.0)}, "INPUT.CT.HU_WINDOW: found"),
        ((), {"MODEL__MASK_ON": False}, "MODEL.MASK_ON: found False.*SEG_LOSS_WEIGHT is 1.0"),
        (
            (),
            {"MODEL__RETINANET__NUM_CLASSES": 8},
            r"NUM_CLASSES: found 8, expected 1, .*phantom_train \(DATASETS.TRAIN\)",
        ),
        (
            (),
            {"DATALOADER__SAMPLER_TRAIN": "RepeatFactorTrainingSampler"},
            "SAMPLER_TRAIN: found 'RepeatFactorTrainingSampler', expected 'TrainingSampler'",
        ),
        ((), {"SOLVER__PLATEAU_PATIENCE": -1}, "SOLVER.PLATEAU_PATIENCE: found -1, expected 0"),
        ((), {"SOLVER__EARLY_STOP_PATIENCE": -2}, "SOLVER.EARLY_STOP_PATIENCE: found -2"),
        *(
            ((), {"SOLVER__PLATEAU_FACTOR": factor}, f"SOLVER.PLATEAU_FACTOR: found {factor}, exp")
            for factor in (0.0, 1.0, 10.0, -0.1)
        ),
        (
            (),
            {"SOLVER__PLATEAU_PATIENCE": 2, "DATASETS__TEST": ()},
            r"DATASETS.TEST: found no data set.*SOLVER.PLATEAU_PATIENCE is 2",
        ),
        (
            (),
            {"SOLVER__EARLY_STOP_PATIENCE": 4, "TEST__EVAL_PERIOD": 0},
            r"TEST.EVAL_PERIOD: found 0, .*SOLVER.EARLY_STOP_PATIENCE is 4",
        ),
        ((), {"MODEL__RETINA_UNET__CALIBRATION": 1.5}, "CALIBRATION: found 1.5, expected 0"),
        ((), {"MODEL__RETINA_UNET__CALIBRATION": -0.5}, "CALIBRATION: found -0.5, expected 0"),
        ((), {"MODEL__RETINA_UNET__SEG_LOSS": "dice"}, "SEG_LOSS: found 'dice', expected 'ce_d"),
        (
            (),
            {"MODEL__RETINA_UNET__SEG_FOCAL_ALPHA": 1.5},
            "SEG_FOCAL_ALPHA: found 1.5, expected 0",
        ),
        ((), {"MODEL__RETINA_UNET__SEG_FOCAL_GAMMA": -2.0}, "SEG_FOCAL_GAMMA: found -2.0, exp"),
        ((), {"MODEL__RETINA_UNET__SEG_LOSS_WEIGHT": -1.0}, "SEG_LOSS_WEIGHT: found -1.0, exp"),
        ((), {"MODEL__RETINA_UNET__BOX_MARGIN": -3.0}, "BOX_MARGIN: found -3.0, expected 0"),
        (
            (),
            {"MODEL__RETINA_UNET__CALIBRATION": 0.5, "MODEL__RETINA_UNET__SEG_LOSS_WEIGHT": 0.0},
            "SEG_LOSS_WEIGHT: found 0, expected .*CALIBRATION 0.5",
        ),
        ((), {"MODEL__META_ARCHITECTURE": "UNet"}, "MODEL: found UNet on build_tiny_.*KeyError"),
        (
            (),
            {"MODEL__BACKBONE__NAME": "build_retinanet_resnet_fpn_backbone"},
            "MODEL.BACKBONE.NAME: found a FPN, expected a U-FPN",
        ),
        (
            (),
            {
                "MODEL__BACKBONE__NAME": "build_retinanet_resnet_fpn_backbone",
                "MODEL__META_ARCHITECTURE": "RetinaNet",
                "MODEL__UNET_FPN__ATTENTION": True,
            },
            "MODEL.BACKBONE.NAME: found build_retinanet.*UNET_FPN.ATTENTION True",
        ),
        (
            (),
            {"MODEL__RETINA_UNET__CALIBRATION": 0.5, "MODEL__META_ARCHITECTURE": "RetinaNet"},
            "META_ARCHITECTURE: found 'RetinaNet', expected 'RetinaUNet'.*CALIBRATION is 0.5",
        ),
    ],
)
def test_wrong_inputs_stop_a_run_before_it_writes(tiny_phantom, tmp_path, flags, changes, message):
    output_dir = tmp_path / "output"
    with pytest.raises(InputError, match=message) as error:
        train_net.main(tiny_args(output_dir, *flags, **changes))
    assert "\n" not in str(error.value)
    assert not output_dir.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"MODEL__MASK_ON": False},
        {"INPUT__PSEUDO_MASK": "magic"},
        {"SOLVER__PLATEAU_PATIENCE": -1},
    ],
)
def test_what_only_training_needs_does_not_stop_an_evaluation(tiny_phantom, tmp_path, changes):
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    args = tiny_args(tmp_path, "--eval-only", MODEL__WEIGHTS=tmp_path / "weights.pth", **changes)
    assert check_inputs(load_config(args), args) == 0
    args = tiny_args(tmp_path, MODEL__RETINA_UNET__SEG_LOSS_WEIGHT=0.0, MODEL__MASK_ON=False)
    assert check_inputs(load_config(args), args) > 0


def test_what_the_model_cannot_do_stops_an_evaluation_too(tiny_phantom, tmp_path):
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    changes = {"MODEL__WEIGHTS": tmp_path / "weights.pth", "MODEL__RETINA_UNET__CALIBRATION": 2.0}
    args = tiny_args(tmp_path, "--eval-only", **changes)
    with pytest.raises(InputError, match=r"CALIBRATION: found 2\.0"):
        check_inputs(load_config(args), args)


def test_torchvisions_weights_of_another_model_stop_a_run_before_it_writes(tiny_phantom, tmp_path):
    weights = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, weights)
    args = tiny_args(tmp_path / "output", MODEL__WEIGHTS=weights, MODEL__VGG__WIDTH=8)
    args.opts += ["MODEL.BACKBONE.NAME", "build_vgg_unet_fpn_backbone"]
    args.opts += ["MODEL.FPN.IN_FEATURES", "('c2', 'c3', 'c4', 'c5')"]
    with pytest.raises(InputError, match=r"resnet.pth: found no features.0.weight, .*'s vgg19"):
        train_net.main(args)
    args.opts += ["MODEL.VGG.DEPTH", "18"]
    with pytest.raises(InputError, match=r"MODEL.VGG.DEPTH: found 18, expected one of \[16, 19\]"):
        train_net.main(args)
    assert not (tmp_path / "output").exists()


def test_a_model_that_needs_memory_to_be_built_is_left_to_the_run(tiny_phantom):
    class Swin(torch.nn.Module):
        """Reads values while it is built, as Detectron2's vision transformers do."""

        def __init__(self, cfg):
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]

    META_ARCH_REGISTRY.register(Swin)
    try:
        args = tiny_args("output", MODEL__META_ARCHITECTURE="Swin")
        assert check_inputs(load_config(args), args) > 0
    finally:
        META_ARCH_REGISTRY._obj_map.pop("Swin")


def test_patience_goes_with_evaluations_by_iterations_or_epochs(tiny_phantom, tmp_path):
    for evaluations in ({"TEST__EVAL_PERIOD": 2}, {"TEST__EVAL_EPOCHS": 1.0}):
        options = {"TEST__EVAL_PERIOD": 0, "SOLVER__EARLY_STOP_PATIENCE": 4, **evaluations}
        args = tiny_args(tmp_path, SOLVER__PLATEAU_PATIENCE=2, **options)
        assert check_inputs(load_config(args), args) > 0


def test_weights_that_are_cut_off_stop_a_run_before_it_writes(tiny_phantom, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.zeros(1000)}}, weights)
    weights.write_bytes(weights.read_bytes()[:2000])
    for flags in ((), ("--eval-only",)):
        with pytest.raises(InputError, match=r"weights\.pth: found no whole checkpoint") as error:
            train_net.main(tiny_args(tmp_path / "output", *flags, MODEL__WEIGHTS=weights))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "content, message", [(None, "no such file"), (b"PK", "found no whole checkpoint")]
)
def test_a_last_checkpoint_that_is_gone_or_cut_off_is_told_of(tmp_path, content, message):
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    if content is not None:
        (tmp_path / "model_0000001.pth").write_bytes(content)
    expected = rf"--resume: .*model_0000001\.pth: {message}.*remove .*last_checkpoint, or start"
    with pytest.raises(InputError, match=expected) as error:
        train_net.main(tiny_args(tmp_path, "--resume"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "log.txt").exists()


def test_an_empty_split_stops_a_run(tiny_phantom, tmp_path, monkeypatch):
    _copy_without(tiny_phantom, tmp_path, monkeypatch, lambda line: line.endswith(",2"))
    with pytest.raises(InputError, match=r"DATASETS.TEST, phantom_val: .*no lesions"):
        train_net.main(tiny_args(tmp_path / "output"))


def test_images_without_lesions_only_are_no_training_set(tmp_path):
    DatasetCatalog.register("empty_images", lambda: [{"annotations": []}] * 3)
    try:
        cfg = tiny_config(DATASETS__TRAIN=("empty_images",))
        with pytest.raises(InputError, match="found no lesion in empty_images"):
            check_inputs(cfg, tiny_args(tmp_path))
        cfg = tiny_config(DATASETS__TRAIN=("empty_images",), DATASETS__TEST=())
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
        assert check_inputs(cfg, tiny_args(tmp_path)) == 3
    finally:
        DatasetCatalog.remove("empty_images")


def test_missing_files_stop_a_run_unless_they_may_be_missing(tiny_phantom, tmp_path, monkeypatch):
    _copy_without(tiny_phantom, tmp_path, monkeypatch, lambda line: False)
    gone = DatasetCatalog.get("phantom_train")[0]
    num_images = len(DatasetCatalog.get("phantom_train"))
    shutil.move(gone["file_name"], tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"DATASETS\.TRAIN, phantom_train: .*bad cells"):
        train_net.main(tiny_args(tmp_path / "output"))
    args = tiny_args(tmp_path / "output", DATASETS__ALLOW_MISSING=True)
    assert check_inputs(load_config(args), args) == num_images - 1
    with pytest.raises(InputError, match="bad cells"):  # the key counts anew in every run
        train_net.main(tiny_args(tmp_path / "output"))


def test_setup_completes_the_config(tiny_phantom, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = tiny_args(
        tmp_path,
        MODEL__DEVICE="cuda",
        DATALOADER__NUM_WORKERS=1000,
        SOLVER__MAX_EPOCHS=2.0,
    )
    cfg = train_net.setup(args)
    num_images = len(DatasetCatalog.get("phantom_train"))
    assert cfg.MODEL.DEVICE == "cpu"
    assert 1 <= cfg.DATALOADER.NUM_WORKERS < 1000
    assert -(-2 * num_images // 4) == cfg.SOLVER.MAX_ITER
    assert cfg.is_frozen()
    log = (tmp_path / "log.txt").read_text()
    assert log.count("no GPU was found: using the CPU") == 1
    assert f"Epochs of {num_images} images" in log
    assert f"MAX_ITER: {cfg.SOLVER.MAX_ITER}" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    "name", ["detectron2.x", f"{detectron2.__name__}.x", "fvcore.x", "lesion_d2.x"]
)
def test_every_logger_prints_and_goes_to_the_log_file_once(tiny_phantom, tmp_path, name, capsys):
    train_net.setup(tiny_args(tmp_path))
    logging.getLogger(name).info("a line of its own")
    assert capsys.readouterr().out.count("a line of its own") == 1
    assert (tmp_path / "log.txt").read_text().count("a line of its own") == 1


def test_processes_on_the_cpu_do_not_see_the_gpus(tiny_phantom, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    prepare_launch(tiny_args(tmp_path))  # one process needs nothing
    assert _visible() == "0,1"
    prepare_launch(tiny_args(tmp_path, "--num-gpus", "2"))
    assert _visible() == ""


def test_more_processes_than_gpus(tiny_phantom, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="found --num-gpus 2, expected at most the 1 GPUs"):
        prepare_launch(tiny_args(tmp_path, "--num-gpus", "2", MODEL__DEVICE="cuda"))


def _visible() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def _copy_without(source, folder, monkeypatch, is_left_out) -> None:
    shutil.copytree(source / "phantom", folder / "phantom")
    file = folder / "phantom" / "DL_info.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if not is_left_out(line)) + "\n")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
