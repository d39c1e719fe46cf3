"""Every config builds, trains a step and infers, at reduced size."""

import re

from lesion_d2 import get_lesion_config
from lesion_d2.config.volumetric import is_volumetric
from lesion_d2.data.loader import build_lesion_test_loader, build_lesion_train_loader
from lesion_d2.data.volumetric.loader import build_volume_train_loader
from lesion_d2.engine import Trainer

import pytest
import torch
from config_values import CONFIGS, flat, read, reduced, values_of
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

# Parts are no configs by themselves: others are built with them.
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "parts")
EXPERIMENTS = [file for file in FILES if not file.name.startswith("Base-")]
_AFFINE = ("MAX_ROTATION", "MAX_SHEAR", "MAX_SCALE", "MAX_TRANSLATION")
_OF_SLICE_IMAGES = ("build_slice_images_backbone", "build_fused_fpn_backbone")
# Of strides: within half a pixel with a VGG; a DenseNet's levels have 0, 1/4 and 3/8.
_OFFSETS = {"vgg": 0.5, "densenet": 0.25, "resnet": 0.0}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(CONFIGS).as_posix())
def test_config_builds_at_full_size(file, monkeypatch):
    for name in ("normal_", "kaiming_normal_", "kaiming_uniform_"):  # slow without numbers, too
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    cfg = read(file).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"  # shapes without numbers
    with torch.device("meta"):
        model = build_model(cfg)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(CONFIGS).as_posix())
def test_config_builds_trains_a_step_and_infers(file, tiny_phantom):
    cfg = reduced(file)
    seed_all_rng(0)  # of the batch too, as some have no anchor on a lesion
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    build = build_volume_train_loader if is_volumetric(cfg) else build_lesion_train_loader
    batch = next(iter(build(cfg)))
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    with EventStorage():
        losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses

    sum(losses.values()).backward()
    optimizer.step()
    # A plain step can be too small for a norm's weight of 1: then its gradient says that it learns.
    same = [
        name
        for name, p in model.named_parameters()
        if name in before and p.equal(before[name]) and (p.grad is None or not p.grad.any())
    ]
    assert not same, f"the step did not change {same}"

    model.eval()
    if is_volumetric(cfg):
        sample = [{"image": 255 * torch.rand(1, *cfg.INPUT.VOLUME.PATCH_SIZE)}]
        size = cfg.INPUT.VOLUME.PATCH_SIZE
    else:
        sample = next(iter(build_lesion_test_loader(cfg, "phantom_val")))
        size = (sample[0]["height"], sample[0]["width"])
    with torch.no_grad():
        [output] = model(sample)
    assert output["instances"].image_size == size


def test_names_of_experiments_and_outputs_agree():
    outputs = {}
    for file in EXPERIMENTS:
        cfg = read(file)
        assert cfg.OUTPUT_DIR not in outputs, f"{file} and {outputs[cfg.OUTPUT_DIR]} share a folder"
        outputs[cfg.OUTPUT_DIR] = file
    assert len(outputs) >= 3


def _zlocha(name):
    return values_of(CONFIGS / "improved_retinanet" / f"{name}.yaml")


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: f.relative_to(CONFIGS).as_posix())
def test_weights_get_images_at_the_scale_they_were_learned_at(file):
    values = values_of(file)
    # The spread is part of the first convolution of MSRA's weights; the wide window of 3DCE and of
    # Bai et al. has its own.
    spread = 1.0 if "/MSRA/" in values["MODEL.WEIGHTS"] else 127.5
    has_wide_window = file.parent.name == "3dce_attention" or "densenet" in values["MODEL.WEIGHTS"]
    spread = 29.0 if has_wide_window else spread
    assert values["MODEL.PIXEL_STD"] == [spread] * values["INPUT.CT.NUM_SLICES"]


@pytest.mark.parametrize("suffix", ["", "_phantom"])
def test_rows_of_zlochas_table_differ_in_nothing_but_their_own_addition(suffix):
    rows = [_zlocha(f"{name}{suffix}") for name in ("retinanet", "anchors", "dense", "attention")]
    anchors = {"MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"}
    dense = {"META_ARCHITECTURE", "MASK_ON", "BACKBONE.NAME", "FPN.IN_FEATURES"}
    dense |= {"RETINANET.IN_FEATURES", "SEG_HEAD.LOSS_TYPE", "RETINA_UNET.CALIBRATION"}
    additions = [anchors, {f"MODEL.{key}" for key in dense}, {"MODEL.UNET_FPN.ATTENTION"}]
    for before, after, addition in zip(rows, rows[1:], additions, strict=False):
        assert {key for key in after if after[key] != before[key]} == addition | {"OUTPUT_DIR"}
    assert rows[0]["MODEL.FPN.IN_FEATURES"] == ["c3", "c4", "c5"]
    assert rows[0]["MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES"] is False  # so in all of them
    assert rows[-1]["INPUT.PSEUDO_MASK"] == "grabcut"


@pytest.mark.parametrize("suffix", ["", "_phantom"])
def test_rows_of_uldors_table_differ_in_nothing_but_their_own_addition(suffix):
    names = ("mask_rcnn_no_mask", "mask_rcnn", "uldor")
    rows = [values_of(CONFIGS / "uldor" / f"{name}{suffix}.yaml") for name in names]
    mining = {"MODEL.ROI_HEADS.NAME", "MODEL.ROI_HEADS.NUM_CLASSES", "HARD_NEGATIVES.EPOCHS"}
    if suffix:
        mining.add("HARD_NEGATIVES.START_EPOCHS")
    for before, after, addition in zip(rows, rows[1:], [{"MODEL.MASK_ON"}, mining], strict=False):
        assert {key for key in after if after[key] != before[key]} == addition | {"OUTPUT_DIR"}


def test_uldor_has_the_papers_values():
    """Tang et al., sections 2.2 and 2.3."""
    values = values_of(CONFIGS / "uldor" / "uldor.yaml")
    expected = {
        "MODEL.RESNETS.DEPTH": 101,
        "INPUT.PSEUDO_MASK": "ellipse",
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.MOMENTUM": 0.9,
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.BASE_LR": 1e-3,
        "SOLVER.GAMMA": 0.1,
        "SOLVER.STEP_EPOCHS": (4.0, 8.0, 12.0),
        "SOLVER.PATIENCE_METRIC": "validation_loss",
        "HARD_NEGATIVES.EPOCHS": 1.0,
        "HARD_NEGATIVES.START_EPOCHS": 0.0,
        "HARD_NEGATIVES.MAX_PER_IMAGE": 3,
        "HARD_NEGATIVES.POSITIVE_IOU_THRESH": 0.3,
        "HARD_NEGATIVES.MIN_SCORE": 0.7,
        # Of its group's code (3DCE, MULAN): the window, and no image is turned or warped.
        "INPUT.CT.HU_WINDOW": (-1024.0, 3071.0),
        **{f"INPUT.AUG.{key}": 0.0 for key in ("HFLIP_PROB", "VFLIP_PROB", *_AFFINE)},
    }
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("name", ["uldor", "mask_rcnn", "mask_rcnn_no_mask"])
def test_uldors_phantom_table_has_the_settings_that_it_was_measured_with(name):
    values = values_of(CONFIGS / "uldor" / f"{name}_phantom.yaml")
    expected = {
        "INPUT.CT.HU_WINDOW": (-300.0, 400.0),
        "INPUT.AUG.HFLIP_PROB": 0.5,
        **{f"INPUT.AUG.{key}": 0.0 for key in ("VFLIP_PROB", *_AFFINE)},
        "MODEL.PIXEL_MEAN": [127.5] * 3,
        "SOLVER.EARLY_STOP_PATIENCE": 0,
    }
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: f.relative_to(CONFIGS).as_posix())
def test_no_training_ends_early_before_the_first_step_of_its_learning_rate(file):
    """The first evaluation is the best so far, and so many in a row without a better one follow."""
    values = values_of(file)
    patience, steps = values["SOLVER.EARLY_STOP_PATIENCE"], values["SOLVER.STEP_EPOCHS"]
    if patience > 0 and steps:
        kind = "LOSS" if values["SOLVER.PATIENCE_METRIC"] == "validation_loss" else "EVAL"
        # Where no value was finite, none is the best.
        assert patience * values[f"TEST.{kind}_EPOCHS"] > steps[0]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: f.relative_to(CONFIGS).as_posix())
def test_anchors_lie_where_the_features_of_their_backbone_do(file):
    """tests/modeling/backbone/test_feature_centers.py measures where that is."""
    values = values_of(file)
    names = values["MODEL.BACKBONE.NAME"], values["MODEL.SLICE_IMAGES.BACKBONE"]
    name = names[1] if names[0] in _OF_SLICE_IMAGES else names[0]
    kind = next(kind for kind in _OFFSETS if kind in name)
    assert values["MODEL.ANCHOR_GENERATOR.OFFSET"] == _OFFSETS[kind]


_TAO = [
    (f"3dce_{num_slices}{attention}", num_slices, contextual, spatial)
    for num_slices in (9, 15, 21)
    for attention, contextual, spatial in [
        ("", False, False),
        ("_c", True, False),
        ("_s", False, True),
        ("_cs", True, True),
    ]
]


@pytest.mark.parametrize("suffix", ["", "_phantom"])
@pytest.mark.parametrize(("name", "num_slices", "contextual", "spatial"), _TAO)
def test_taos_models_differ_in_their_slices_and_attention_alone(
    name, num_slices, contextual, spatial, suffix
):
    file = CONFIGS / "3dce_attention" / f"{name}{suffix}.yaml"
    if suffix and num_slices == 21:
        assert not file.exists()
        return
    values, rfcn = values_of(file), values_of(CONFIGS / "3dce_attention" / f"rfcn{suffix}.yaml")
    expected = rfcn | {
        "INPUT.CT.NUM_SLICES": num_slices,
        "MODEL.PIXEL_MEAN": [35.0] * num_slices,
        "MODEL.PIXEL_STD": [29.0] * num_slices,
        "MODEL.RFCN_3DCE.CONTEXTUAL_ATTENTION": contextual,
        "MODEL.RFCN_3DCE.SPATIAL_ATTENTION": spatial,
        "OUTPUT_DIR": f"output/3dce_attention_{name}{suffix}",
    }
    assert values == expected


def test_taos_phantom_models_begin_with_the_pretrained_one():
    pretrained, rfcn = (
        values_of(CONFIGS / "3dce_attention" / f"{name}_phantom.yaml")
        for name in ("pretrain", "rfcn")
    )
    changed = {key for key in rfcn if rfcn[key] != pretrained[key]}
    assert changed - {"OUTPUT_DIR", "MODEL.WEIGHTS"} == {
        f"SOLVER.{key}"
        for key in ("BASE_LR", "WARMUP_ITERS", "IMS_PER_BATCH", "MAX_ITER", "CHECKPOINT_PERIOD")
    }
    assert rfcn["MODEL.WEIGHTS"] == f"{pretrained['OUTPUT_DIR']}/model_final.pth"


def test_taos_models_have_the_papers_values():
    """Tao et al., section 3, and the numbers of 3DCE and of its released code."""
    values = values_of(CONFIGS / "3dce_attention" / "rfcn.yaml")
    expected = {
        "MODEL.WEIGHTS": "torchvision://vgg16",
        "MODEL.VGG.DEPTH": 16,
        "MODEL.VGG.POOLED_STAGES": (1, 2, 3),
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 24, 32, 48, 96]],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 7,
        "MODEL.RPN.CONV_DIMS": [256],
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32,
        "MODEL.RPN.POSITIVE_FRACTION": 0.5,
        "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 1.0,
        "MODEL.RPN.SMOOTH_L1_BETA": 1 / 9,
        "MODEL.RPN.NMS_THRESH": 0.7,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 10.0,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
        "MODEL.RFCN_3DCE.NUM_SCORE_MAPS": 10,
        "MODEL.RFCN_3DCE.CONTEXTUAL_TEMPERATURE": 2.0,
        "MODEL.RFCN_3DCE.SPATIAL_TEMPERATURE": 3.0,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 2048,
        "INPUT.CT.HU_WINDOW": (-1024.0, 3071.0),
        "INPUT.CT.PIXEL_SPACING": 0.8,
        "INPUT.CT.MAX_SIZE": 512,
        "TEST.INCLUSIVE_BOXES": True,
        "INPUT.CT.CROP_TO_BODY": True,
        "INPUT.CT.SLICE_INTERVAL": 2.0,
        **{f"INPUT.AUG.{key}_PROB": 0.0 for key in ("HFLIP", "VFLIP")},
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BIAS_LR_FACTOR": 2.0,
        "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "value",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 5.0,
        "TEST.BEST_METRIC": "froc/sens@4",
        "SOLVER.BASE_LR": 0.001,
        "SOLVER.MOMENTUM": 0.9,
        "SOLVER.WEIGHT_DECAY": 5e-5,
        "SOLVER.GAMMA": 0.1,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_EPOCHS": 6.0,
        "SOLVER.STEP_EPOCHS": (4.0, 5.0),
    }
    assert {key: values[key] for key in expected} == expected


def test_taos_readme_names_layers_whose_learning_rates_can_differ():
    cfg = get_lesion_config()
    cfg.merge_from_file(str(CONFIGS / "3dce_attention" / "rfcn_phantom.yaml"))
    [line] = re.findall(
        "SOLVER.LR_FACTORS '(.*)'", (CONFIGS / "3dce_attention" / "README.md").read_text()
    )
    cfg.merge_from_list(["SOLVER.LR_FACTORS", line, "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    heads, base = model.roi_heads, cfg.SOLVER.BASE_LR
    assert rates[id(heads.box_pooler.score_maps.weight)] == 3 * base
    assert rates[id(heads.box_head.fc1.weight)] == 2 * base
    assert rates[id(heads.box_predictor.cls_score.weight)] == base


def test_found_anchors_replace_the_papers(tmp_path):
    file = tmp_path / "own.yaml"
    bases = [
        str(CONFIGS / "improved_retinanet" / name)
        for name in ("attention.yaml", "parts/anchors_deeplesion.yaml")
    ]
    file.write_text(f"_BASE_: {bases}")
    cfg = read(file)
    expected = _zlocha("attention") | {
        f"MODEL.ANCHOR_GENERATOR.{key}": cfg.MODEL.ANCHOR_GENERATOR[key]
        for key in ("SIZES", "ASPECT_RATIOS")
    }
    assert flat(cfg) == expected
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0] == pytest.approx([13.40, 16.76, 21.16], abs=0.01)


@pytest.mark.parametrize("name", ["retinanet", "retinanet_phantom"])
def test_the_original_retinanet_has_detectron2s_anchors(name):
    values = _zlocha(name)
    # configs/Base-RetinaNet.yaml of Detectron2
    expected = [size * 2 ** (i / 3) for size in (32, 64, 128, 256, 512) for i in range(3)]
    sizes = values["MODEL.ANCHOR_GENERATOR.SIZES"]
    assert [value for level in sizes for value in level] == pytest.approx(expected, 1e-5)
    assert values["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] == [[0.5, 1.0, 2.0]]
