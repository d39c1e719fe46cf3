from lesion_d2.engine import load_config
from lesion_d2.modeling import DetUNet

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from made_up_images import make_sample
from slow_components import check_components, slow_components
from tiny_run import tiny_args


def _model(**changes):
    torch.manual_seed(0)
    options = {"MODEL__META_ARCHITECTURE": "DetUNet", "MODEL__RETINANET__NUM_CLASSES": 2, **changes}
    return build_model(load_config(tiny_args("output", **options)))


@pytest.mark.parametrize(("seed", "margin"), [(0, 0.0), (1, 2.0), (2, 1.5)])
def test_components_against_a_flood_fill(seed, margin):
    model = _model(INPUT__BOX_MARGIN=margin, MODEL__SEG_HEAD__PREDICT_MASKS=True)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 7, 9, generator=generator)
    coarse[:, 0] += 0.8
    logits = torch.nn.functional.interpolate(coarse, size=(21, 30), mode="bicubic")
    probabilities = (2 * logits).softmax(dim=1)[0]
    expected = slow_components(probabilities, 5, (margin, margin))
    everything = slow_components(probabilities, 1000, (margin, margin))
    sizes = [size for size, *_ in everything]
    assert len(everything) > 5 and sorted(sizes)[-6] < sorted(sizes)[-5]  # some are left out
    assert {category for _, _, category, *_ in expected} == {0, 1}
    found = model.find_components(probabilities)
    check_components(found, expected)


def test_many_components_take_no_more_memory_than_the_largest():
    model = _model(MODEL__DET_UNET__MAX_COMPONENTS=3)
    probabilities = torch.zeros(3, 512, 512)
    probabilities[0] = 0.5
    probabilities[1, ::2, ::2] = 0.9  # 65,536 components: 16 GiB as masks
    probabilities[2, 101, 101:104] = 1.0
    found = model.find_components(probabilities)
    assert len(found) == 3 and found.pred_classes[0] == 1 and found.scores[0] == 1


def test_nothing_but_background_gives_no_detection():
    model = _model(MODEL__SEG_HEAD__PREDICT_MASKS=True)
    probabilities = torch.zeros(3, 10, 12)
    probabilities[0] = 1
    found = model.find_components(probabilities)
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
    assert found.pred_masks.shape == (0, 10, 12) and found.image_size == (10, 12)


def test_it_learns_two_images_by_heart_and_answers_at_the_wanted_size():
    model = _model(INPUT__BOX_MARGIN=0.0)
    assert isinstance(model, DetUNet)
    batch = [
        make_sample([(8, 10, 28, 26), (36, 34, 58, 56)], [0, 1], 1),
        make_sample([(30, 6, 54, 24)], [0], 2),
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with EventStorage():
        for _ in range(120):
            losses = model(batch)
            optimizer.zero_grad()
            losses["loss_seg"].backward()
            optimizer.step()
    assert set(losses) == {"loss_seg"}

    model.eval()
    with torch.no_grad():
        for scale in (1, 2):
            size = {"height": 64 * scale, "width": 64 * scale}
            outputs = [o["instances"] for o in model([{**x, **size} for x in batch])]
            for output, sample in zip(outputs, batch, strict=True):
                truth = sample["instances"]
                sure = output[output.scores > 0.9]
                assert sure.image_size == (64 * scale, 64 * scale)
                order = sure.pred_classes.argsort()
                assert sure.pred_classes[order].tolist() == truth.gt_classes.tolist()
                boxes = (sure.pred_boxes.tensor[order] + 0.5) / scale - 0.5
                assert (boxes - truth.gt_boxes.tensor).abs().max() < 3


def test_it_needs_a_u_fpn():
    with pytest.raises(ValueError, match="found a FPN, expected a U-FPN for the segmentation"):
        _model(MODEL__BACKBONE__NAME="build_resnet_fpn_backbone")


def test_a_segmentation_without_classes_is_refused():
    """It is where the classes come from; with one class there is nothing to refuse."""
    with pytest.raises(ValueError, match=r"CLASS_AGNOSTIC: found True, expected False"):
        _model(MODEL__SEG_HEAD__CLASS_AGNOSTIC=True)
    _model(MODEL__SEG_HEAD__CLASS_AGNOSTIC=True, MODEL__RETINANET__NUM_CLASSES=1)
