"""The configs of Jaeger et al. (2020) have the paper's values and differ in what they are."""

import math

import pytest
from config_values import CONFIGS, values_of

_JAEGER = {
    "retina_unet": {
        "META_ARCHITECTURE",
        "MASK_ON",
        "BACKBONE.NAME",
        "SEG_HEAD.CLASS_AGNOSTIC",  # the others' segmentation has classes
    },
    "retinanet": {"META_ARCHITECTURE", "RETINA_UNET.SEG_LOSS_WEIGHT"},
    "faster_rcnn_plus": {"META_ARCHITECTURE", "ANCHOR_GENERATOR.SIZES"},
    "mask_rcnn": {"META_ARCHITECTURE", "ANCHOR_GENERATOR.SIZES", "MASK_ON"},
    "u_faster_rcnn_plus": {
        "META_ARCHITECTURE",
        "ANCHOR_GENERATOR.SIZES",
        "BACKBONE.NAME",
        "LESION_RCNN.SEG_LOSS_WEIGHT",
    },
    "det_unet": {"META_ARCHITECTURE", "MASK_ON", "BACKBONE.NAME"},
}


@pytest.mark.parametrize("model", _JAEGER)
@pytest.mark.parametrize("name", ["retina_unet/{}", "toys/{}", "toys/{}_small"])
def test_models_of_jaegers_comparison_differ_in_nothing_but_what_they_are(tmp_path, name, model):
    """What they have in common is the parts, on which a RetinaNet without any mask is built."""
    parts = ["retina_unet/parts/common.yaml"]
    parts += ["toys/parts/toys.yaml"] * name.startswith("toys")
    parts += ["toys/parts/small.yaml"] * name.endswith("_small")
    file = tmp_path / "common.yaml"
    base = [str(CONFIGS / part) for part in parts]
    file.write_text(f"_BASE_: {base}\nMODEL:\n  BACKBONE:\n    NAME: build_resnet_fpn_backbone")
    common, own = values_of(file), values_of(CONFIGS / f"{name.format(model)}.yaml")
    expected = {f"MODEL.{key}" for key in _JAEGER[model]} | {"OUTPUT_DIR"}
    if (name, model) == ("toys/{}_small", "retina_unet"):
        expected.add("MODEL.RETINA_UNET.SEG_LOSS_WEIGHT")
    assert {key for key in own if own[key] != common[key]} == expected


@pytest.mark.parametrize("model", _JAEGER)
def test_jaegers_models_in_3d_are_those_of_slices_and_two_parts(tmp_path, model):
    folder, file = CONFIGS / "retina_unet", tmp_path / "own.yaml"
    parts = [folder / f"{model}.yaml", folder / "parts" / "3d.yaml", folder / "parts" / "lidc.yaml"]
    file.write_text(f"_BASE_: {list(map(str, parts))}")
    expected, values = values_of(file), values_of(folder / f"{model}_3d.yaml")
    changed = {key for key in values if values[key] != expected[key]}
    own = {"MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "OUTPUT_DIR"}
    stages = {"MODEL.VOLUMETRIC.ANCHOR_DEPTHS"} if "mask" in model or "faster" in model else set()
    assert changed == own | stages
    assert values["MODEL.BACKBONE.NAME"].replace("_3d_", "_") == expected["MODEL.BACKBONE.NAME"]
    depths = values["MODEL.VOLUMETRIC.ANCHOR_DEPTHS"]
    for level, sizes in enumerate(values["MODEL.ANCHOR_GENERATOR.SIZES"]):
        # Jaeger et al., section 4.1: z-scales 1, 2, 4 and 8 with sizes 4, 8, 16 and 32
        assert depths[level] == pytest.approx([size / 4 for size in sizes], rel=1e-3)


def test_jaegers_models_in_3d_have_the_papers_values_or_those_of_the_authors_code():
    """Jaeger et al., sections 3.1, 4.1, 4.2 and 4.4.1; else their published lidc_exp."""
    values = values_of(CONFIGS / "retina_unet" / "mask_rcnn_3d.yaml")
    weights = (10.0, 10.0, 10.0, 5.0, 5.0, 5.0)
    expected = {
        "INPUT.VOLUME.PATCH_SIZE": (64, 128, 128),
        "INPUT.VOLUME.SPACING": (0.7, 0.7, 1.25),
        "INPUT.PATCH.FOREGROUND_PROB": 0.5,
        "INPUT.CT.HU_WINDOW": (-1200.0, 600.0),
        "SOLVER.OPTIMIZER": "Adam",
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.MAX_ITER": 100 * 200,
        "TEST.NUM_BEST_CHECKPOINTS": 5,
        "DATALOADER.CLASS_BALANCE": True,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 18,
        "MODEL.FPN.OUT_CHANNELS": 36,
        "MODEL.VOLUMETRIC.HEAD_CHANNELS": 64,
        "MODEL.VOLUMETRIC.STRIDES": ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        "MODEL.VOLUMETRIC.BOX_POOLER_DEPTH": 3,
        "MODEL.VOLUMETRIC.MASK_POOLER_DEPTH": 5,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
        "MODEL.DET_UNET.MAX_COMPONENTS": 15,
        "MODEL.RPN.CONV_DIMS": [64],
        "MODEL.RPN.IOU_THRESHOLDS": [0.01, 0.7],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 6000,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 75,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 500,
        "MODEL.RETINANET.IOU_THRESHOLDS": [0.01, 0.5],
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.01, 0.3],
        **{
            f"MODEL.{name}.BBOX_REG_WEIGHTS": weights
            for name in ("RETINANET", "RPN", "ROI_BOX_HEAD")
        },
    }
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("model", sorted({*_JAEGER} - {"faster_rcnn_plus"}))
def test_rows_of_the_small_table_1_see_as_many_voxels_of_the_same_patients(model):
    rows = [
        values_of(CONFIGS / "retina_unet" / "small" / dimension / f"{model}.yaml")
        for dimension in ("2d", "2dc", "3d")
    ]
    seen = []
    for values in rows:
        patch = values["INPUT.VOLUME.PATCH_SIZE"]
        patch = patch if any(patch) else values["INPUT.PATCH.SIZE"]
        seen.append(math.prod(patch) * values["SOLVER.IMS_PER_BATCH"] * values["SOLVER.MAX_ITER"])
        shared = ("DATASETS.TRAIN", "INPUT.CT.HU_WINDOW", "MODEL.FPN.OUT_CHANNELS")
        shared += ("MODEL.RESNETS.WIDTH_PER_GROUP", "SOLVER.BASE_LR", "MODEL.UNET_FPN.C0_CHANNELS")
        assert {key: values[key] for key in shared} == {key: rows[0][key] for key in shared}
    assert len(set(seen)) == 1
    changed = {key for key in rows[1] if rows[1][key] != rows[0][key]}
    slices = {"INPUT.CT.NUM_SLICES", "INPUT.CT.SLICE_INTERVAL"}
    assert changed == slices | {"MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "OUTPUT_DIR"}


def test_jaegers_models_have_the_papers_values():
    """Jaeger et al., sections 3.1, 4.1 and 4.2."""
    values = values_of(CONFIGS / "retina_unet" / "retina_unet.yaml")
    expected = {
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RETINANET.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "MODEL.SEG_HEAD.LOSS_TYPE": "ce_dice",
        "MODEL.RETINA_UNET.SOFTMAX": True,
        "MODEL.DET_UNET.MAX_COMPONENTS": 5,
        "SOLVER.OPTIMIZER": "Adam",
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.IMS_PER_BATCH": 20,
        "TEST.NUM_BEST_CHECKPOINTS": 5,
        "TEST.BEST_METRIC": "bbox/AP10",
    }
    assert {key: values[key] for key in expected} == expected

    two_stages = values_of(CONFIGS / "retina_unet" / "u_faster_rcnn_plus.yaml")
    assert two_stages["MODEL.ANCHOR_GENERATOR.SIZES"] == [[4.0], [8.0], [16.0], [32.0]]
    sizes = [size * 2 ** (i / 3) for size in (4, 8, 16, 32) for i in range(3)]
    found = [size for level in values["MODEL.ANCHOR_GENERATOR.SIZES"] for size in level]
    assert found == pytest.approx(sizes, rel=1e-3)
    assert values["MODEL.RETINA_UNET.SHEM_POOL"] > 1

    context = values_of(CONFIGS / "retina_unet" / "retina_unet_2dc.yaml")
    changed = {key for key in context if context[key] != values[key]}
    slices = {"INPUT.CT.NUM_SLICES", "INPUT.CT.SLICE_INTERVAL"}
    assert changed == slices | {"MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "OUTPUT_DIR"}
    assert context["INPUT.CT.SLICE_INTERVAL"] == 0 and values["INPUT.CT.NUM_SLICES"] == 1
    assert context["INPUT.CT.NUM_SLICES"] == len(context["MODEL.PIXEL_MEAN"]) == 7


def test_jaegers_models_have_the_values_of_the_authors_code():
    """Their published experiment on the toys, where the paper names no value."""
    values = values_of(CONFIGS / "toys" / "retina_unet.yaml")
    weights = (10.0, 10.0, 5.0, 5.0)  # deltas over a spread of 0.1 and 0.2
    expected = {
        "MODEL.SEG_HEAD.CLASS_AGNOSTIC": True,
        "MODEL.RETINA_UNET.SEG_LOSS_WEIGHT": 0.5,
        "MODEL.RETINA_UNET.SHEM_POOL": 20,
        "MODEL.RETINA_UNET.SHEM_POSITIVES": 1,
        "MODEL.LESION_RCNN.SHEM_POOL": 10,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 2,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 2,
        "MODEL.RETINANET.IOU_THRESHOLDS": [0.1, 0.5],
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 1.0,
        "MODEL.RETINANET.BBOX_REG_WEIGHTS": weights,
        "MODEL.RETINANET.NMS_THRESH_TEST": 1e-5,
        "MODEL.RPN.IOU_THRESHOLDS": [0.1, 0.7],
        "MODEL.RPN.SMOOTH_L1_BETA": 1.0,
        "MODEL.RPN.BBOX_REG_WEIGHTS": weights,
        "MODEL.RPN.NMS_THRESH": 0.7,
        "MODEL.ROI_HEADS.NAME": "LesionROIHeads",
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.1, 0.5],
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 1e-5,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": weights,
        "MODEL.UNET_FPN.UPSAMPLING": "bilinear",
        "MODEL.UNET_FPN.C0_CHANNELS": 48,
        "SOLVER.MAX_ITER": 100 * 200,
        "TEST.EVAL_PERIOD": 200,
        "TEST.NUM_BEST_CHECKPOINTS": 5,
        "TEST.ENSEMBLE.MIRRORS": True,
        "TEST.ENSEMBLE.IOU_THRESH": 1e-5,
    }

    assert {key: values[key] for key in expected} == expected
    for name in ("u_faster_rcnn_plus", "det_unet"):
        others = values_of(CONFIGS / "toys" / f"{name}.yaml")
        assert not others["MODEL.SEG_HEAD.CLASS_AGNOSTIC"]

    own = values_of(CONFIGS / "retina_unet" / "retina_unet.yaml")
    changed = {key for key in expected if own[key] != expected[key]}
    batches = {f"MODEL.{name}.BATCH_SIZE_PER_IMAGE" for name in ("RPN", "ROI_HEADS")}
    assert changed == batches | {"MODEL.RETINA_UNET.SHEM_POSITIVES", "TEST.EVAL_PERIOD"}

    augmentation = {
        "INPUT.AUG.MAX_ROTATION": pytest.approx(math.pi, abs=1e-5),
        "INPUT.AUG.MAX_SHEAR": 0.0,
        "INPUT.AUG.MAX_SCALE": 0.2,
        "INPUT.AUG.HFLIP_PROB": 0.5,
        "INPUT.AUG.VFLIP_PROB": 0.5,
    }
    assert {key: own[key] for key in augmentation} == augmentation
