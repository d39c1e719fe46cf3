import copy
import itertools

from lesion_d2 import get_lesion_config
from lesion_d2.data.transforms.augmentation import ResizeTransform
from lesion_d2.data.transforms.lesion_transforms import transform_lesions
from lesion_d2.layers import giou_loss
from lesion_d2.modeling.attention import record_attention
from lesion_d2.modeling.calibration import mask_agreement
from lesion_d2.modeling.losses import anchor_focal_loss, focal_segmentation_loss
from lesion_d2.modeling.meta_arch.retina_unet import RetinaUNet
from lesion_d2.modeling.shem import batch_shem_loss, box_loss_per_image, shem_loss

import pytest
import torch
from detectron2.modeling import RetinaNet, build_model
from detectron2.structures import Boxes, BoxMode, ImageList, Instances
from detectron2.utils.events import EventStorage
from made_up_images import make_disks
from tiny_run import tiny_config

QUICKSTART = "configs/quickstart/retina_unet_phantom.yaml"
ZLOCHA = "configs/improved_retinanet/attention_phantom.yaml"


def _model(request_root, *opts, config=QUICKSTART):
    cfg = get_lesion_config()
    cfg.merge_from_file(str(request_root / config))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    torch.manual_seed(0)
    return build_model(cfg), cfg


def _losses(model, batch):
    with EventStorage():
        return model(batch)


_SOFTMAX = ("MODEL.RETINA_UNET.SOFTMAX", True)
_SHEM = ("MODEL.RETINA_UNET.SHEM_POOL", 20)


@pytest.mark.parametrize("options", [(), (*_SOFTMAX, *_SHEM)], ids=str)
def test_overfits_two_images_and_finds_boxes_and_masks(options):
    norms = dict.fromkeys(
        ("MODEL__RESNETS__NORM", "MODEL__FPN__NORM", "MODEL__RETINANET__NORM"), "BN"
    )
    cfg = tiny_config(MODEL__UNET_FPN__DECODER_CHANNELS=(16, 8), **norms)
    cfg.merge_from_list(["MODEL.SEG_HEAD.PREDICT_MASKS", True, *options])
    torch.manual_seed(0)
    model, steps = build_model(cfg), 40
    boxes = [[12, 10, 34, 32]], [[38, 8, 54, 24], [8, 34, 26, 58]]
    batch = [make_disks(of_image, 64, 64, seed=seed) for seed, of_image in enumerate(boxes)]
    optimizer = torch.optim.Adam(model.parameters())
    with EventStorage():
        for step in range(steps):
            for group in optimizer.param_groups:  # to 0, so that boxes come to rest
                group["lr"] = 0.01 * (1 - step / steps)
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
    losses = _losses(model, [make_disks([[20, 30, 50, 62]], channels=channels)])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_seg"}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_empty_images_and_a_batch_of_different_sizes_train(pytestconfig):
    model, _ = _model(pytestconfig.rootpath)
    batch = [make_disks([], 64, 96), make_disks([[20, 20, 40, 50]], 100, 70)]
    losses = _losses(model, batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    nothing = _losses(model, [make_disks([], 64, 64), make_disks([], 64, 64)])
    assert all(torch.isfinite(loss) for loss in nothing.values())
    assert nothing["loss_box_reg"] == 0


def test_mixed_precision_loss_is_finite_and_close(pytestconfig):
    model, _ = _model(pytestconfig.rootpath)
    batch = [make_disks([[20, 30, 50, 62]]), make_disks([])]
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
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.SEG_HEAD.PREDICT_MASKS", False),
    )
    model.eval()
    calls = []
    decode = model.backbone.decode
    monkeypatch.setattr(model.backbone, "decode", lambda *args: calls.append(1) or decode(*args))
    with torch.no_grad():
        plain = model([make_disks([])])[0]["instances"]
        assert not calls and not plain.has("pred_masks")
        model.predict_masks = True
        masked = model([make_disks([])])[0]["instances"]
    assert calls and torch.equal(masked.scores, plain.scores)
    assert masked.pred_masks.shape == (len(plain), 96, 128)
    assert masked.pred_masks.dtype == torch.bool


def test_p2_is_not_computed_at_inference_where_no_head_looks_at_it(pytestconfig):
    sizes = [[20.0], [40.0], [80.0]]
    model, _ = _model(
        pytestconfig.rootpath,
        *("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.RETINANET.NUM_CONVS", 1),
        *("MODEL.ANCHOR_GENERATOR.SIZES", sizes, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
    )
    backbone, calls = model.backbone, []
    for part in (
        *(backbone.fpn_lateral2, backbone.fpn_output2, backbone.reduce_p2, backbone.lateral_p1),
        *(backbone.reduce_p1, backbone.lateral_p0, backbone.output_p0, model.seg_predictor),
    ):
        part.register_forward_hook(lambda part, inputs, output: calls.append(part))
    with torch.no_grad():
        masked = model.eval()([make_disks([])])[0]["instances"]
        assert len(calls) == 8 and masked.has("pred_masks")
        calls.clear()
        model.predict_masks = False
        plain = model([make_disks([])])[0]["instances"]
    assert calls == [] and torch.equal(masked.scores, plain.scores)

    losses = _losses(model.train(), [make_disks([[20, 20, 60, 60]])])
    sum(losses.values()).backward()
    assert backbone.fpn_output2.weight.grad.abs().max() > 0


def test_outputs_come_at_the_wanted_size(pytestconfig):
    model, _ = _model(
        pytestconfig.rootpath,
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.SEG_HEAD.PREDICT_MASKS", True),
    )
    model.eval()
    sample = make_disks([])
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
    annotation = {"bbox": [35.0, 15.0, 75.0, 49.0], "bbox_mode": BoxMode.XYXY_ABS}
    annotation |= {"recist": level, "category_id": 0}
    truth = transform_lesions([annotation], None, resize, size)
    perfect = Instances(size, pred_boxes=truth.gt_boxes)
    restored = RetinaUNet.postprocess(perfect, None, {"height": 96, "width": 128})
    torch.testing.assert_close(
        restored.pred_boxes.tensor, torch.tensor([annotation["bbox"]]), atol=1e-4, rtol=0
    )


def test_without_segmentation_it_is_detectron2s_retinanet(pytestconfig):
    model, _ = _model(
        pytestconfig.rootpath,
        *("MODEL.RETINA_UNET.SEG_LOSS_WEIGHT", 0.0, "MODEL.SEG_HEAD.PREDICT_MASKS", False),
    )
    assert model.seg_predictor is None
    batch = [make_disks([[20, 30, 50, 62]])]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    losses = _losses(model, batch)
    model.load_state_dict(state)
    del model.loss_normalizer
    with EventStorage():
        expected = super(type(model), model).forward(batch)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[k], expected[k]) for k in losses)


def _zlocha(root, *opts):
    options = ("MODEL.VGG.WIDTH", 8, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, *opts)
    return _model(root, *options, config=ZLOCHA)[0]


@pytest.mark.parametrize("size", [(61, 83), (96, 35)])
def test_gates_at_odd_image_sizes(pytestconfig, size):
    model = _zlocha(pytestconfig.rootpath, "MODEL.SEG_HEAD.PREDICT_MASKS", True)
    with record_attention(model) as maps:
        losses = _losses(model, [make_disks([[5, 8, 20, 30]], *size), make_disks([], 50, 50)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    height, width = (-(-max(side, 50) // 32) * 32 for side in size)
    for stride, level in enumerate(("p0", "p1", "p2", "p3", "p4")):
        assert maps[level].shape == (2, 1, height >> stride, width >> stride)
    with torch.no_grad():
        output = model.eval()([make_disks([], *size)])[0]["instances"]
    assert output.image_size == size and output.pred_masks.shape[1:] == size


def test_focal_segmentation_loss_with_the_configs_parameters(pytestconfig):
    options = ("MODEL.SEG_HEAD.FOCAL_ALPHA", 0.7, "MODEL.SEG_HEAD.FOCAL_GAMMA", 1.5)
    model = _zlocha(pytestconfig.rootpath, *options, "MODEL.RETINA_UNET.SEG_LOSS_WEIGHT", 3.0)
    logits, seen = [], model.predict_segmentation
    model.predict_segmentation = lambda *args: logits.append(seen(*args)) or logits[-1]
    batch = [make_disks([[5, 8, 20, 30]], 64, 64), make_disks([[30, 10, 50, 40]], 64, 64, seed=1)]
    loss = _losses(model, batch)["loss_seg"]
    labels = torch.cat([sample["instances"].gt_masks.tensor for sample in batch]).long()
    expected = 3 * focal_segmentation_loss(logits[0], labels, alpha=0.7, gamma=1.5)
    torch.testing.assert_close(loss, expected)


def test_calibration_changes_scores_and_their_order_and_nothing_else(pytestconfig):
    model = _zlocha(pytestconfig.rootpath, "MODEL.RETINA_UNET.CALIBRATION", 0.0).eval()
    mask = torch.zeros(1, 2, 64, 64)
    mask[0, 1, 20:40, 10:50] = 9.0
    mask[0, 0] = 4.5
    model.predict_segmentation = lambda *args: mask
    sample = make_disks([], 64, 64)
    with torch.no_grad():
        plain = model([sample])[0]["instances"]
        model.calibration = 0.6
        found = model([sample])[0]["instances"]
    assert len(found) == len(plain) > 20
    assert not found.has("pred_masks")
    assert (found.scores.diff() <= 0).all()

    agreement = mask_agreement(
        plain.pred_boxes.tensor, plain.pred_classes, mask[0, 1:] > 5, margin=5.0
    )
    expected = plain.scores * (0.4 + 0.6 * agreement)
    order = expected.argsort(descending=True, stable=True)
    assert not torch.equal(order, torch.arange(len(plain)))
    torch.testing.assert_close(found.scores, expected[order])
    torch.testing.assert_close(found.pred_boxes.tensor, plain.pred_boxes.tensor[order])


def test_without_a_detection_calibration_costs_nothing_and_masks_are_there(pytestconfig):
    model = _zlocha(pytestconfig.rootpath, "MODEL.RETINA_UNET.CALIBRATION", 0.5).eval()
    model.test_score_thresh = 1.0
    calls, decode = [], model.backbone.decode
    model.backbone.decode = lambda *args: calls.append(1) or decode(*args)
    with torch.no_grad():
        assert len(model([make_disks([], 64, 64)])[0]["instances"]) == 0 and not calls
        model.predict_masks = True
        found = model([make_disks([], 64, 64)])[0]["instances"]
    assert calls and found.pred_masks.shape == (0, 64, 64)


def test_the_margin_of_boxes_is_resized_with_the_slice(pytestconfig):
    model = _zlocha(pytestconfig.rootpath, "MODEL.RETINA_UNET.CALIBRATION", 1.0).eval()
    mask = torch.zeros(2, 64, 64)
    mask[1, 20:30, 10:30] = 1.0
    perfect = Instances((64, 64))
    perfect.pred_boxes = Boxes(torch.tensor([[7.0, 17.0, 32.0, 32.0]]))  # 2.5 px around the mask
    perfect.scores, perfect.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    for height, agrees in ((128, True), (64, False)):
        result = model.calibrate(copy.deepcopy(perfect), mask, {"height": height})
        assert (result.scores.item() == pytest.approx(1)) == agrees


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "RETINA_UNET.CALIBRATION",
            1.5,
            "MODEL.RETINA_UNET.CALIBRATION: found 1.5, expected 0 to 1",
        ),
        (
            "SEG_HEAD.LOSS_TYPE",
            "dice",
            "MODEL.SEG_HEAD.LOSS_TYPE: found 'dice', expected 'ce_dice' or",
        ),
    ],
)
def test_bad_options_are_named(pytestconfig, option, value, message):
    with pytest.raises(ValueError, match=message):
        _zlocha(pytestconfig.rootpath, f"MODEL.{option}", value)


def test_a_softmax_begins_at_the_prior_and_gives_probabilities(pytestconfig):
    options = (*_SOFTMAX, "MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.PRIOR_PROB", 0.02)
    model, _ = _model(pytestconfig.rootpath, *options, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    scores = []
    model.inference_single_image = lambda anchors, logits, *args: scores.extend(logits)
    with torch.no_grad():
        model.head.cls_score.weight.zero_()
        images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
        features = [torch.rand(1, 48, 64 >> level, 64 >> level) for level in (2, 3, 4, 5)]
        model.eval().forward_inference(images, features, model.head(features))
        assert [level.shape[1] for level in scores] == [3, 3, 3, 3]
        torch.testing.assert_close(torch.cat(scores), torch.full_like(torch.cat(scores), 0.02))
        torch.nn.init.normal_(model.head.cls_score.weight)
        scores.clear()
        logits, deltas = model.head(features)
        model.forward_inference(images, features, [logits, deltas])
    for level, found in zip(logits, scores, strict=True):
        anchors = level[0].reshape(-1, 4, *level.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)
        expected = anchors.exp()[:, :3] / anchors.exp().sum(dim=1, keepdim=True)
        torch.testing.assert_close(found, expected)


def test_exclusive_classes_train_by_the_losses_of_their_own(pytestconfig):
    batch = [make_disks([[20, 30, 50, 62], [60, 10, 90, 40]], classes=[0, 1]), make_disks([])]
    for options in (_SOFTMAX, (*_SOFTMAX, *_SHEM), _SHEM):
        model, _ = _model(pytestconfig.rootpath, *options, "MODEL.RETINANET.NUM_CLASSES", 2)
        seen = {}
        losses = model.losses
        model.losses = lambda *args, losses=losses, seen=seen: (
            seen.update(args=args) or losses(*args)
        )
        torch.manual_seed(5)
        found = _losses(model, batch)
        anchors, pred_logits, gt_labels, deltas, gt_boxes = seen["args"]
        logits, labels = torch.cat(pred_logits, dim=1), torch.stack(gt_labels)
        num_positive = ((labels >= 0) & (labels < 2)).sum()
        assert num_positive > 0
        if _SHEM[0] in options:
            torch.manual_seed(5)
            expected = shem_loss(logits, labels, pool=20, softmax=model.softmax)
        else:
            # The moving average of the normalizer begins at 100.
            expected = anchor_focal_loss(logits, labels) / (0.9 * 100 + 0.1 * num_positive)
        torch.testing.assert_close(found["loss_cls"], expected)
        if _SHEM[0] in options:
            boxes = (anchors, model.box2box_transform, deltas, gt_boxes)
            is_positive = (labels >= 0) & (labels < 2)
            kind = {"box_reg_loss_type": "smooth_l1", "smooth_l1_beta": model.smooth_l1_beta}
            expected = box_loss_per_image(*boxes, is_positive, **kind)
        else:
            sigmoid = [level[..., :2] for level in pred_logits]
            with EventStorage():
                del model.loss_normalizer
                plain = RetinaNet.losses(model, anchors, sigmoid, gt_labels, deltas, gt_boxes)
            expected = plain["loss_box_reg"]
        torch.testing.assert_close(found["loss_box_reg"], expected)


def test_nndetections_matching_and_losses_by_config(pytestconfig):
    options = {
        "MODEL.RETINANET.ATSS_CANDIDATES": 4,
        "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.RETINA_UNET.SHEM_POOL": 20,
        "MODEL.RETINA_UNET.SHEM_NEGATIVES": 2,
    }
    model, _ = _model(pytestconfig.rootpath, *itertools.chain(*options.items()))
    batch = [make_disks([[20, 30, 50, 62], [60, 10, 90, 40]]), make_disks([])]
    seen = {}
    losses = model.losses
    model.losses = lambda *args: seen.update(args=args) or losses(*args)
    torch.manual_seed(5)
    found = _losses(model, batch)
    anchors, pred_logits, gt_labels, deltas, gt_boxes = seen["args"]
    labels = torch.stack(gt_labels)
    is_positive = labels < 1
    matches, is_match = model.atss(
        batch[0]["instances"].gt_boxes, anchors, model.anchor_generator.num_anchors
    )
    assert torch.equal(is_positive, torch.stack([is_match == 1, torch.zeros_like(is_match) == 1]))
    assert set(matches[is_match == 1].tolist()) == {0, 1}

    torch.manual_seed(5)
    logits = torch.cat(pred_logits, dim=1)
    expected = batch_shem_loss(logits, labels, pool=20, negatives=2, softmax=False)
    torch.testing.assert_close(found["loss_cls"], expected)

    every = Boxes.cat(anchors).tensor
    boxes = model.box2box_transform.apply_deltas(torch.cat(deltas, dim=1)[0], every)
    expected = giou_loss(boxes[is_positive[0]], gt_boxes[0][is_positive[0]], "mean")
    torch.testing.assert_close(found["loss_box_reg"], expected)


def test_of_an_image_only_so_many_positive_anchors_count(pytestconfig):
    limit = ("MODEL.RETINA_UNET.SHEM_POSITIVES", 3)
    model, _ = _model(pytestconfig.rootpath, *_SOFTMAX, *_SHEM, *limit)
    batch = [make_disks([[20, 30, 50, 62], [60, 10, 90, 40]]), make_disks([[20, 30, 50, 62]])]
    predictions, compute = {}, model.losses

    def record(anchors, logits, labels, deltas, boxes):
        predictions.update(logits=logits, deltas=deltas)
        for level in (*logits, *deltas):
            level.retain_grad()
        return compute(anchors, logits, labels, deltas, boxes)

    model.losses = record
    losses = _losses(model, batch)
    (losses["loss_cls"] + losses["loss_box_reg"]).backward()
    counts = [
        (torch.cat([level.grad for level in predictions[name]], dim=1) != 0).any(dim=2).sum(dim=1)
        for name in ("logits", "deltas")
    ]
    assert [c.tolist() for c in counts] == [[6, 6], [3, 3]]


def test_a_prior_that_leaves_no_background_is_named(pytestconfig):
    with pytest.raises(ValueError, match=r"PRIOR_PROB: found 0\.5, expected less than 1 / 2"):
        _model(
            pytestconfig.rootpath,
            *(*_SOFTMAX, "MODEL.RETINANET.NUM_CLASSES", 2, "MODEL.RETINANET.PRIOR_PROB", 0.5),
        )


def test_foreground_alone_in_training_on_one_class_changes_nothing(pytestconfig):
    batch = [make_disks([[20, 30, 50, 62]]), make_disks([[70, 10, 90, 34]], seed=1)]
    results = []
    for is_agnostic in (False, True):
        options = ("MODEL.SEG_HEAD.CLASS_AGNOSTIC", is_agnostic)
        model, _ = _model(pytestconfig.rootpath, *options, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
        losses = _losses(model, batch)
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        model.calibration = 0.5
        model.eval()
        with torch.no_grad():
            [found] = model([{**batch[0], "image": batch[0]["image"]}])
        found = found["instances"].get_fields()
        found["pred_boxes"] = found["pred_boxes"].tensor
        results.append({**losses, **gradients, **found})
    agnostic, with_classes = results
    assert agnostic.keys() == with_classes.keys() and "pred_masks" in agnostic
    assert all(torch.equal(agnostic[key], with_classes[key]) for key in agnostic)


def test_foreground_alone_is_learned_and_shown_for_every_class(pytestconfig):
    """One foreground channel: losses, masks and calibration against the definition."""
    options = ("MODEL.SEG_HEAD.CLASS_AGNOSTIC", True, "MODEL.RETINANET.NUM_CLASSES", 3)
    model, _ = _model(pytestconfig.rootpath, *options)
    assert model.seg_predictor.out_channels == 2
    batch = [make_disks([[20, 30, 50, 62], [70, 10, 90, 34]], classes=[2, 1])]
    logits = torch.randn(1, 2, 96, 128, generator=torch.Generator().manual_seed(1))
    model.predict_segmentation = lambda images, features: logits
    instances = batch[0]["instances"]
    model.seg_loss = lambda found, labels: (found is logits) * labels.sum()
    union = instances.gt_masks.tensor.any(dim=0)
    assert _losses(model, batch)["loss_seg"] == union.sum() > 0

    found = Instances((96, 128))
    found.pred_boxes = Boxes(torch.tensor([[18.0, 28.0, 52.0, 64.0], [68.0, 8.0, 92.0, 36.0]]))
    found.scores = torch.tensor([0.9, 0.8])
    found.pred_classes = torch.tensor([2, 0])
    foreground = logits.softmax(dim=1)[0, 1] > 0.5
    masks = RetinaUNet.postprocess(found, logits.softmax(dim=1)[0], batch[0]).pred_masks
    for mask, (x1, y1, x2, y2) in zip(masks, found.pred_boxes.tensor.long().tolist(), strict=True):
        expected = torch.zeros(96, 128, dtype=torch.bool)
        expected[y1 : y2 + 1, x1 : x2 + 1] = foreground[y1 : y2 + 1, x1 : x2 + 1]
        assert torch.equal(mask, expected)

    model.calibration = 1.0
    scores = found.scores.clone()
    boxes = found.pred_boxes.tensor.clone()
    calibrated = model.calibrate(found, logits.softmax(dim=1)[0], batch[0])
    agreement = mask_agreement(boxes, torch.zeros(2).long(), foreground[None], margin=5.0)
    expected = (scores * agreement).sort(descending=True).values
    torch.testing.assert_close(calibrated.scores, expected)
