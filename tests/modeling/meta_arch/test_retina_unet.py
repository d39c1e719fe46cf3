import lesion_d2
from lesion_d2.data.augmentation import ResizeTransform
from lesion_d2.data.mapper import transform_lesions
from lesion_d2.modeling.losses import IGNORE
from lesion_d2.modeling.meta_arch.retina_unet import _postprocess, masks_in_boxes, semantic_labels

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

QUICKSTART = "configs/quickstart/retina_unet_phantom.yaml"


def _model(request_root, *opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.merge_from_file(str(request_root / QUICKSTART))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    torch.manual_seed(0)
    return build_model(cfg), cfg


def _sample(boxes, height=96, width=128, channels=3, classes=None, seed=0):
    """Noise with a bright disk in every box."""
    generator = torch.Generator().manual_seed(seed)
    image = 60 + 10 * torch.randn(channels, height, width, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[:] = (
            ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2
        ) <= 0.25
        image[:, mask] += 120
    instances.gt_masks = BitMasks(masks)
    return {"image": image, "instances": instances, "height": height, "width": width}


def _losses(model, batch):
    with EventStorage():
        return model(batch)


def test_overfits_two_images_and_finds_boxes_and_masks(pytestconfig):
    model, cfg = _model(
        pytestconfig.rootpath, "MODEL.RETINA_UNET.PREDICT_MASKS", True, "SOLVER.BASE_LR", 0.002
    )
    batch = [_sample([[20, 30, 50, 62]]), _sample([[70, 10, 90, 34], [16, 56, 40, 84]], seed=1)]
    optimizer = build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    with EventStorage():
        for _ in range(60):
            loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            outputs = model(batch)
    for sample, output in zip(batch, outputs, strict=True):
        truth, found = sample["instances"], output["instances"]
        found = found[: len(truth)]  # by falling score
        assert len(found) == len(truth)
        overlap = torch.max((found.pred_masks[:, None] & truth.gt_masks.tensor).sum((2, 3)), 1)
        dice = (
            2
            * overlap.values
            / (found.pred_masks.sum((1, 2)) + truth.gt_masks.tensor[overlap.indices].sum((1, 2)))
        )
        assert (dice > 0.8).all()
        assert sorted(overlap.indices.tolist()) == list(range(len(truth)))
        difference = found.pred_boxes.tensor - truth.gt_boxes.tensor[overlap.indices]
        assert difference.abs().max() < 4


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_slices(pytestconfig, channels):
    values = [127.5] * channels
    model, _ = _model(pytestconfig.rootpath, "MODEL.PIXEL_MEAN", values, "MODEL.PIXEL_STD", values)
    losses = _losses(model, [_sample([[20, 30, 50, 62]], channels=channels)])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_seg"}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_empty_images_and_a_batch_of_different_sizes_train(pytestconfig):
    model, _ = _model(pytestconfig.rootpath)
    batch = [_sample([], 64, 96), _sample([[20, 20, 40, 50]], 100, 70)]
    losses = _losses(model, batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    nothing = _losses(model, [_sample([], 64, 64), _sample([], 64, 64)])
    assert all(torch.isfinite(loss) for loss in nothing.values())
    assert nothing["loss_box_reg"] == 0


def test_mixed_precision_loss_is_finite_and_close(pytestconfig):
    model, _ = _model(pytestconfig.rootpath)
    batch = [_sample([[20, 30, 50, 62]]), _sample([])]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    expected = _losses(model, batch)
    model.load_state_dict(state)
    del model.loss_normalizer  # the first step's moving average
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = _losses(model, batch)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05), name
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_segmentation_is_not_computed_at_inference_unless_asked_for(pytestconfig, monkeypatch):
    model, _ = _model(
        pytestconfig.rootpath,
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.RETINA_UNET.PREDICT_MASKS", False),
    )
    model.eval()
    calls = []
    decode = model.backbone.decode
    monkeypatch.setattr(model.backbone, "decode", lambda *args: calls.append(1) or decode(*args))
    with torch.no_grad():
        plain = model([_sample([])])[0]["instances"]
        assert not calls and not plain.has("pred_masks")
        model.predict_masks = True
        masked = model([_sample([])])[0]["instances"]
    assert calls and torch.equal(masked.scores, plain.scores)
    assert masked.pred_masks.shape == (len(plain), 96, 128)
    assert masked.pred_masks.dtype == torch.bool


def test_outputs_come_at_the_wanted_size(pytestconfig):
    model, _ = _model(
        pytestconfig.rootpath,
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.RETINA_UNET.PREDICT_MASKS", True),
    )
    model.eval()
    sample = _sample([])
    with torch.no_grad():
        at_image_size = model([sample])[0]["instances"]
        doubled = model([{**sample, "height": 192, "width": 256}])[0]["instances"]
    assert doubled.image_size == (192, 256) and doubled.pred_masks.shape[1:] == (192, 256)
    # Pixel centers are whole numbers: the first pixel's center goes to 0.5.
    inside = (at_image_size.pred_boxes.tensor[:, :2] > 0).all(dim=1)
    expected = (at_image_size.pred_boxes.tensor + 0.5) * 2 - 0.5
    torch.testing.assert_close(doubled.pred_boxes.tensor[inside], expected[inside])


@pytest.mark.parametrize("size", [(48, 64), (96, 128), (192, 256)])
def test_a_box_comes_back_to_the_slice_where_the_mapper_took_it_from(size):
    height, width = size
    resize = ResizeTransform(96, 128, height, width)
    level = [40.0, 30.0, 70.0, 30.0, 55.0, 20.0, 55.0, 44.0]
    annotation = {"recist": level, "bbox": [35.0, 15.0, 75.0, 49.0], "category_id": 0}
    truth = transform_lesions([annotation], None, resize, size)
    perfect = Instances(size, pred_boxes=truth.gt_boxes)
    restored = _postprocess(perfect, None, {"height": 96, "width": 128})
    torch.testing.assert_close(
        restored.pred_boxes.tensor, torch.tensor([annotation["bbox"]]), atol=1e-4, rtol=0
    )


def test_without_segmentation_it_is_detectron2s_retinanet(pytestconfig):
    model, _ = _model(
        pytestconfig.rootpath,
        *("MODEL.RETINA_UNET.SEG_LOSS_WEIGHT", 0.0, "MODEL.RETINA_UNET.PREDICT_MASKS", False),
    )
    assert model.seg_predictor is None
    batch = [_sample([[20, 30, 50, 62]])]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    losses = _losses(model, batch)
    model.load_state_dict(state)
    del model.loss_normalizer
    with EventStorage():
        expected = super(type(model), model).forward(batch)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[k], expected[k]) for k in losses)


def test_semantic_labels():
    first, second = Instances((3, 4)), Instances((2, 2))
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    masks[0, 0, :2] = True
    masks[1, 0, 1:3] = True
    first.gt_masks, first.gt_classes = BitMasks(masks), torch.tensor([4, 0])
    second.gt_masks, second.gt_classes = BitMasks(torch.zeros(0, 2, 2)), torch.zeros(0).long()
    images = ImageList(torch.zeros(2, 1, 3, 4), [(3, 4), (2, 2)])
    labels = semantic_labels([first, second], images)
    assert labels[0].tolist() == [[5, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    i = IGNORE
    assert labels[1].tolist() == [[0, 0, i, i], [0, 0, i, i], [i, i, i, i]]


def test_masks_in_boxes_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    class_masks = torch.rand(2, 9, 11, generator=generator) > 0.5
    boxes = torch.tensor([[0.0, 0.0, 11.0, 9.0], [2.4, 1.6, 7.5, 4.4], [5.0, 5.0, 5.0, 5.0]])
    classes = torch.tensor([1, 0, 1])
    masks = masks_in_boxes(class_masks, boxes, classes)
    for n, y, x in torch.cartesian_prod(torch.arange(3), torch.arange(9), torch.arange(11)):
        x1, y1, x2, y2 = boxes[n]
        inside = x1 <= x <= x2 and y1 <= y <= y2
        assert masks[n, y, x] == (inside and class_masks[classes[n], y, x])
