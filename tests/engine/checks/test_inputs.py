from lesion_d2.data.pseudo_masks import PseudoMask
from lesion_d2.data.pseudo_masks.files import mask_annotation, write_mask_file
from lesion_d2.engine import InputError, load_config
from lesion_d2.engine.checks import check_inputs
from lesion_d2.modeling import DetUNet, LesionRCNN, RetinaUNet

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from run_training import write_weights
from tiny_run import tiny_args, uldor_args

import train_net


@pytest.mark.parametrize(
    "flags, changes, message",
    [
        (
            (),
            {"DATASETS__TRAIN": ("phantom_trian",)},
            "TRAIN: found 'phantom_trian', expected a name such as phantom_train, [^ ]*",
        ),
        (
            (),
            {"DATASETS__TEST": ("x",)},
            r"DATASETS.TEST: found 'x', expected a name such as deeplesion_train, (\w+, ){3}\w+$",
        ),
        ((), {"DATASETS__TRAIN": ()}, "DATASETS.TRAIN: found no data set"),
        ((), {"DATASETS__TEST": ("deeplesion_val",)}, "DATASETS.TEST, deeplesion_val: .*DL_info"),
        ((), {"SOLVER__OPTIMIZER": "Lion"}, "SOLVER.OPTIMIZER: found 'Lion'"),
        ((), {"SOLVER__LR_FACTORS": ["fc1"]}, "SOLVER.LR_FACTORS: found 'fc1', expected a layer"),
        ((), {"MODEL__WEIGHTS": "gone.pth"}, "MODEL.WEIGHTS: gone.pth: no such weight file"),
        (("--num-gpus", "3"), {}, "SOLVER.IMS_PER_BATCH: found 4, expected a multiple of the 3"),
        (("--eval-only",), {}, "MODEL.WEIGHTS: found none, expected"),
        (("--eval-only", "--resume"), {}, "MODEL.WEIGHTS: found none, expected"),
        ((), {"INPUT__PSEUDO_MASK": "magic"}, "INPUT.PSEUDO_MASK: found 'magic'"),
        ((), {"INPUT__PSEUDO_MASK_FILES": ("gone.json",)}, "gone.json"),
        ((), {"MODEL__PIXEL_MEAN": [1.0] * 2}, "PIXEL_MEAN, PIXEL_STD: found 2 and .* expected 3"),
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
            r"DATASETS.TEST: found \(\), expected a data set.*SOLVER.PLATEAU_PATIENCE is 2",
        ),
        (
            (),
            {"SOLVER__EARLY_STOP_PATIENCE": 4, "TEST__EVAL_PERIOD": 0},
            r"TEST.EVAL_PERIOD: found 0, .*SOLVER.EARLY_STOP_PATIENCE is 4",
        ),
        (
            (),
            {"TEST__NUM_BEST_CHECKPOINTS": 3, "TEST__EVAL_PERIOD": 0},
            r"TEST.EVAL_PERIOD: found 0, .*TEST.BEST_METRIC \(TEST.NUM_BEST_CHECKPOINTS is 3\)$",
        ),
        (
            (),
            {"TEST__NUM_BEST_CHECKPOINTS": 3, "SOLVER__PATIENCE_METRIC": "validation_loss"},
            "TEST.LOSS_PERIOD: found 0, .* for the validation_loss .*NUM_BEST_CHECKPOINTS is 3",
        ),
        (
            (),
            {"TEST__NUM_BEST_CHECKPOINTS": 3, "TEST__BEST_METRIC": "volume/AP10"},
            "TEST.BEST_METRIC: found 'volume/AP10', .* for phantom_val .*NUM_BEST_CHECKPOINTS is 3",
        ),
        (
            (),
            {"SOLVER__PLATEAU_PATIENCE": 1, "DATASETS__TEST": ("phantom_volumes_val",)},
            "TEST.BEST_METRIC: found 'bbox/AP50', expected volume/AP10 for phantom_volumes_val",
        ),
        ((), {"MODEL__RETINA_UNET__CALIBRATION": 1.5}, "CALIBRATION: found 1.5, expected 0"),
        ((), {"MODEL__RETINA_UNET__CALIBRATION": -0.5}, "CALIBRATION: found -0.5, expected 0"),
        ((), {"MODEL__SEG_HEAD__LOSS_TYPE": "dice"}, "LOSS_TYPE: found 'dice', expected 'ce_d"),
        (
            (),
            {"MODEL__SEG_HEAD__FOCAL_ALPHA": 1.5},
            "FOCAL_ALPHA: found 1.5, expected 0",
        ),
        ((), {"MODEL__SEG_HEAD__FOCAL_GAMMA": -2.0}, "FOCAL_GAMMA: found -2.0, exp"),
        ((), {"MODEL__RETINA_UNET__SEG_LOSS_WEIGHT": -1.0}, "SEG_LOSS_WEIGHT: found -1.0, exp"),
        ((), {"INPUT__BOX_MARGIN": -3.0}, "BOX_MARGIN: found -3.0, expected 0"),
        (
            (),
            {"MODEL__RETINA_UNET__CALIBRATION": 0.5, "MODEL__RETINA_UNET__SEG_LOSS_WEIGHT": 0.0},
            "SEG_LOSS_WEIGHT: found 0.0, expected above 0 .*CALIBRATION is 0.5",
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
            "MODEL.BACKBONE.NAME: found 'build_retinanet.*UNET_FPN.ATTENTION is True",
        ),
        (
            (),
            {"MODEL__RETINA_UNET__CALIBRATION": 0.5, "MODEL__META_ARCHITECTURE": "RetinaNet"},
            "META_ARCHITECTURE: found 'RetinaNet', expected a RetinaUNet .*CALIBRATION is 0.5",
        ),
        (
            (),
            {
                "MODEL__RETINANET__ALLOW_LOW_QUALITY_MATCHES": False,
                "MODEL__META_ARCHITECTURE": "RetinaNet",
            },
            "META_ARCHITECTURE: found 'RetinaNet', expected a LesionRetinaNet or.*MATCHES is Fal",
        ),
        (
            (),
            {"INPUT__CT__CROP_TO_BODY": True, "MODEL__META_ARCHITECTURE": "RetinaNet"},
            "META_ARCHITECTURE: found 'RetinaNet', expected a DetUNet.*CROP_TO_BODY is True",
        ),
        (
            (),
            {"MODEL__RFCN_3DCE__SPATIAL_ATTENTION": True},
            "MODEL.BACKBONE.NAME: found 'build_tiny.*build_slice_.*SPATIAL_ATTENTION is True",
        ),
        (
            (),
            {"MODEL__RFCN_3DCE__CONTEXTUAL_TEMPERATURE": 0.0},
            "CONTEXTUAL_TEMPERATURE: found 0.0, expected above 0",
        ),
        ((), {"MODEL__RFCN_3DCE__NUM_SCORE_MAPS": 0}, "NUM_SCORE_MAPS: found 0, expected 1 or"),
        (
            (),
            {"MODEL__SLICE_IMAGES__FEATURE_CACHE_SIZE": -1},
            "FEATURE_CACHE_SIZE: found -1, expected 0",
        ),
        ((), {"INPUT__CT__MAX_SIZE": -5}, "MAX_SIZE -5, expected 0 or more"),
    ],
)
def test_wrong_inputs_stop_a_run_before_it_writes(tiny_phantom, tmp_path, flags, changes, message):
    output_dir = tmp_path / "output"
    with pytest.raises(InputError, match=message) as error:
        train_net.main(tiny_args(output_dir, *flags, **changes))
    assert "\n" not in str(error.value)
    assert not output_dir.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 5}, r"the mask of row \d+ \(image .*\) has \[5, \d+\] pixels, expected"),
        ({"row": 99}, r"found no mask of row \d+ \(image"),
    ],
)
def test_mask_files_that_are_of_no_use_stop_a_run(tiny_phantom, tmp_path, change, message):
    image = DatasetCatalog.get("phantom_train")[0]
    lesion, file = image["annotations"][0], tmp_path / "masks.json"
    size = (change.get("height", image["height"]), image["width"])
    mask = PseudoMask(np.ones(size, bool), False)
    entry = {**mask_annotation(image["image_id"], lesion, mask), **change}
    write_mask_file(file, {"method": "ellipse"}, [entry])
    args = tiny_args(tmp_path / "output", INPUT__PSEUDO_MASK_FILES=(str(file),))
    with pytest.raises(InputError, match=f"INPUT.PSEUDO_MASK_FILES: {file}: {message}"):
        check_inputs(load_config(args), args)


@pytest.mark.parametrize(
    "changes",
    [
        {"MODEL__MASK_ON": False},
        {"INPUT__PSEUDO_MASK": "magic"},
        {"SOLVER__PLATEAU_PATIENCE": -1},
    ],
)
def test_what_only_training_needs_does_not_stop_an_evaluation(tiny_phantom, tmp_path, changes):
    write_weights(tiny_args(tmp_path), tmp_path / "weights.pth")
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


@pytest.mark.parametrize("flags", [("--num-gpus", "0"), ("--num-gpus", "1"), ("--num-gpus", "2")])
def test_a_batch_is_divided_among_the_processes_if_there_are_several(tiny_phantom, tmp_path, flags):
    args = tiny_args(tmp_path, *flags)  # batches of 4; Detectron2 runs 0 GPUs as one process
    assert check_inputs(load_config(args), args) > 0


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


@pytest.fixture
def derived():
    """Names of registered architectures that are derived from ours."""
    bases = {"MyUNet": RetinaUNet, "MyRCNN": LesionRCNN, "MyDetUNet": DetUNet}
    for name, base in bases.items():
        META_ARCH_REGISTRY.register(type(name, (base,), {}))
    yield
    for name in bases:
        META_ARCH_REGISTRY._obj_map.pop(name)


def test_derived_architectures_are_taken_for_what_they_are(tiny_phantom, tmp_path, derived):
    calibrated = {"MODEL__RETINA_UNET__CALIBRATION": 0.5, "INPUT__CT__CROP_TO_BODY": True}
    segmented = {"MODEL__LESION_RCNN__SEG_LOSS_WEIGHT": 1.0, "INPUT__CT__CROP_TO_BODY": True}
    retina, fewer = "MODEL.RETINANET.NUM_CLASSES: found 3", {"MODEL__RETINANET__NUM_CLASSES": 3}
    for name, build_args, good, bad, message in (
        ("MyUNet", tiny_args, calibrated, segmented, "found 'MyUNet', expected a LesionRCNN"),
        ("MyUNet", tiny_args, {}, fewer, retina),
        ("MyDetUNet", tiny_args, {}, fewer, retina),
        ("MyRCNN", uldor_args, segmented, calibrated, "found 'MyRCNN', expected a RetinaUNet"),
    ):
        args = build_args(tmp_path, MODEL__META_ARCHITECTURE=name, **good)
        assert check_inputs(load_config(args), args) > 0
        args = build_args(tmp_path, MODEL__META_ARCHITECTURE=name, **bad)
        with pytest.raises(InputError, match=message):
            check_inputs(load_config(args), args)


def test_patience_goes_with_evaluations_by_iterations_or_epochs(tiny_phantom, tmp_path):
    for evaluations in ({"TEST__EVAL_PERIOD": 2}, {"TEST__EVAL_EPOCHS": 1.0}):
        options = {"TEST__EVAL_PERIOD": 0, "SOLVER__EARLY_STOP_PATIENCE": 4, **evaluations}
        args = tiny_args(
            tmp_path, SOLVER__PLATEAU_PATIENCE=2, TEST__NUM_BEST_CHECKPOINTS=2, **options
        )
        assert check_inputs(load_config(args), args) > 0


def test_weights_that_are_cut_off_stop_a_run_before_it_writes(tiny_phantom, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.zeros(1000)}}, weights)
    weights.write_bytes(weights.read_bytes()[:2000])
    for flags in ((), ("--eval-only",)):
        with pytest.raises(
            InputError, match=r"weights\.pth: found no complete checkpoint"
        ) as error:
            train_net.main(tiny_args(tmp_path / "output", *flags, MODEL__WEIGHTS=weights))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "content, message", [(None, "no such weight file"), (b"PK", "found no complete checkpoint")]
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
