"""Every config builds, trains a step and infers, at reduced size."""

from pathlib import Path

import lesion_d2
from lesion_d2.data.loader import build_lesion_test_loader, build_lesion_train_loader
from lesion_d2.engine import Trainer

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
EXPERIMENTS = [file for file in FILES if not file.name.startswith("Base-")]


def _reduced(file):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.merge_from_file(str(file))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.INPUT.CT.IMAGE_SIZE = 64
    cfg.INPUT.PSEUDO_MASK_FILES = ()
    cfg.DATASETS.TRAIN = ("phantom_train",)
    cfg.DATASETS.TEST = ("phantom_val",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(CONFIGS).as_posix())
def test_config_builds_trains_a_step_and_infers(file, tiny_phantom):
    cfg = _reduced(file)
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    batch = next(iter(build_lesion_train_loader(cfg)))
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    with EventStorage():
        losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    optimizer.step()
    same = [
        name for name, p in model.named_parameters() if name in before and p.equal(before[name])
    ]
    assert not same, f"the step did not change {same}"
    model.eval()
    sample = next(iter(build_lesion_test_loader(cfg, "phantom_val")))
    with torch.no_grad():
        [output] = model(sample)
    size = (sample[0]["height"], sample[0]["width"])
    assert output["instances"].image_size == size


def test_names_of_experiments_and_outputs_agree():
    outputs = {}
    for file in EXPERIMENTS:
        cfg = get_cfg()
        lesion_d2.add_lesion_config(cfg)
        cfg.merge_from_file(str(file))
        assert cfg.OUTPUT_DIR not in outputs, f"{file} and {outputs[cfg.OUTPUT_DIR]} share a folder"
        outputs[cfg.OUTPUT_DIR] = file
    assert len(outputs) >= 3
