"""Training steps on a GPU: mixed precision, layouts, fused optimizers, the teacher, compiling."""

import copy

from lesion_d2.engine import Trainer, load_config
from lesion_d2.engine.solver.compilation import compile_parts, missing_compiler
from lesion_d2.modeling import MeanTeacher

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny_run import tiny_config, uldor_args

pytestmark = pytest.mark.gpu


def _batch(device):
    generator = torch.Generator().manual_seed(1)
    batch = []
    for left in (8, 20):
        masks = torch.zeros(1, 64, 64, dtype=torch.bool)
        masks[0, 20:40, left : left + 24] = True
        instances = Instances((64, 64), gt_masks=BitMasks(masks))
        instances.gt_boxes = Boxes(torch.tensor([[left, 20.0, left + 23.0, 39.0]]))
        instances.gt_classes = torch.zeros(1, dtype=torch.int64)
        image = 255 * torch.rand(3, 64, 64, generator=generator)
        batch.append({"image": image.to(device), "instances": instances.to(device)})
    return batch


def _model(device, **changes):
    cfg = tiny_config(MODEL__DEVICE=device, **changes)
    torch.manual_seed(0)
    return Trainer.build_model(cfg)


def _losses(model, batch):
    torch.manual_seed(0)  # of what is drawn
    with EventStorage():
        return model(batch)


def check_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(
            found[name].float(), loss.float(), rtol=tolerance, atol=tolerance
        )


def test_losses_are_those_of_a_cpu(device, exact):
    model, on_cpu = _model(device), _model("cpu")
    on_cpu.load_state_dict(model.state_dict())
    expected = {name: loss.to(device) for name, loss in _losses(on_cpu, _batch("cpu")).items()}
    check_same(_losses(model, _batch(device)), expected, 1e-3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_mixed_precision_has_nearly_the_same_losses_and_finite_gradients(device, channels_last):
    model = _model(device, MODEL__CHANNELS_LAST=channels_last)
    batch = _batch(device)
    expected = _losses(model, batch)
    with torch.autocast(device):
        found = _losses(model, batch)
    check_same(found, expected, 0.05)
    sum(found.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients)


def test_regions_in_mixed_precision(device):
    model = build_model(load_config(uldor_args("output", MODEL__DEVICE=device)))
    batch = _batch(device)
    expected = _losses(model, batch)
    with torch.autocast(device):
        found = _losses(model, batch)
    # Rounded proposals are others, of which others are drawn.
    check_same(found, expected, 0.3)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_a_training_in_mixed_precision_with_a_fused_optimizer_learns(
    device, tiny_phantom, tmp_path, optimizer
):
    cfg = tiny_config(
        MODEL__DEVICE=device,
        OUTPUT_DIR=tmp_path,
        SOLVER__OPTIMIZER=optimizer,
        SOLVER__BASE_LR=1e-3,
        SOLVER__AMP__ENABLED=True,
        SOLVER__MAX_ITER=4,
        DATASETS__TEST=(),
        TEST__EVAL_PERIOD=0,
    )
    trainer = Trainer(cfg)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()

    assert trainer.iter == 4 and trainer.optimizer.defaults["fused"] == (
        True if device == "cuda" else None
    )

    losses = [loss for loss, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == 4 and all(loss > 0 for loss in losses)
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)]
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in trainer.model.parameters())
    assert sum(moved) > len(moved) / 2


def test_the_teacher_is_the_average_of_its_students(device):
    model = _model(device)
    teacher = MeanTeacher(model, momentum=0.9)
    first = {k: v.clone() for k, v in teacher.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in teacher.student.parameters():
            parameter.add_(1.0)
    teacher.update_teacher()
    student = teacher.student.state_dict()
    for name, value in teacher.teacher.state_dict().items():
        assert value.device.type == device
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.9 * first[name] + 0.1 * student[name])


def test_a_compiled_model_has_the_same_losses_and_gradients(device, exact):
    missing = missing_compiler(device)
    if missing:
        pytest.skip(f"no {missing}")
    plain = _model(device)
    model = copy.deepcopy(plain)
    # On a CPU, where this test tests itself, what torch's compiler takes apart runs as it is.
    compile_parts(model, backend="inductor" if device == "cuda" else "eager")
    assert list(model.state_dict()) == list(plain.state_dict())
    found, expected = (_losses(each, _batch(device)) for each in (model, plain))
    check_same(found, expected, 1e-4)
    for losses in (found, expected):
        sum(losses.values()).backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-4)
