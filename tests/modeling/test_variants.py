from lesion_d2.modeling import variant_of, without_low_scores, without_masks

import torch
from torch import nn


class _Part(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.conv = nn.Linear(2, 2)
        self.__dict__.update(attributes)


class _Detector(nn.Module):
    """As Detectron2's R-CNN: the heads have the threshold, and say whether they predict masks."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.roi_heads = _Part(mask_on=True)
        self.roi_heads.box_predictor = _Part(test_score_thresh=0.05)
        self.again = self.roi_heads.box_predictor


def test_a_variant_differs_in_attributes_and_shares_all_weights():
    model = _Detector()
    variant = without_low_scores(without_masks(model), 0.5)
    assert not variant.roi_heads.mask_on and model.roi_heads.mask_on
    assert 0.49 < variant.roi_heads.box_predictor.test_score_thresh < 0.5
    assert model.roi_heads.box_predictor.test_score_thresh == 0.05
    assert variant.backbone is model.backbone
    assert variant.again is variant.roi_heads.box_predictor
    pairs = zip(model.named_parameters(), variant.named_parameters(), strict=True)
    assert all(name == other and a is b for (name, a), (other, b) in pairs)
    variant.to(torch.float64).load_state_dict({k: v * 0 for k, v in model.state_dict().items()})
    assert all((p == 0).all() and p.dtype == torch.float64 for p in model.parameters())


def test_what_would_not_differ_is_the_model_itself():
    model = _Detector()
    assert without_low_scores(model, 0.01) is model  # its own threshold is higher
    assert variant_of(model, lambda part: {}) is model
    assert without_masks(model.backbone) is model.backbone


def test_a_calibrated_detector_keeps_its_threshold():
    detector = _Part(test_score_thresh=0.05, calibration=0.5, predict_masks=True)
    assert without_low_scores(detector, 0.5) is detector
    assert without_masks(detector).test_score_thresh == 0.05
