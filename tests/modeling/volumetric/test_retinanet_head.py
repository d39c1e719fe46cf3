import lesion_d2  # noqa: F401, makes detectron2 importable
from lesion_d2.modeling.volumetric import RetinaNetHead3D, VolumeShape

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from made_up_patches import tiny_config, tiny_model


def _arguments(num_classes=2, num_anchors=3, num_levels=2):
    shape = VolumeShape(channels=4, stride=4, strides=(1, 4, 4))
    sizes = {"num_classes": num_classes, "num_anchors": num_anchors, "conv_dims": [5, 6]}
    return {"input_shape": [shape] * num_levels, **sizes}


def test_without_weights_between_slices_it_is_detectron2s_on_each_slice():
    torch.manual_seed(0)
    flat = RetinaNetHead(**_arguments(num_levels=1))
    for parameter in flat.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    head = RetinaNetHead3D(**_arguments())
    # Detectron2's four deltas are dx, dy, dw, dh.
    in_plane = torch.tensor([0, 1, 3, 4])
    state = {name: torch.zeros_like(value) for name, value in head.state_dict().items()}
    for name, value in flat.state_dict().items():
        name = name.replace("subnet.2", "subnet.1")  # Detectron2 counts activations, too
        if name.startswith("bbox_pred"):
            target = state[name].view(3, 6, *state[name].shape[1:])
            value = value.view(3, 4, *value.shape[1:])
            if name.endswith("weight"):
                target[:, in_plane, :, 1] = value
            else:
                target[:, in_plane] = value
        elif name.endswith("weight"):
            state[name][:, :, 1] = value
        else:
            state[name] = value
    head.load_state_dict(state)
    levels = [torch.randn(2, 4, 3, 6, 5), torch.randn(2, 4, 2, 3, 3)]
    logits, deltas = head(levels)

    for i, level in enumerate(levels):
        for z in range(level.shape[2]):
            wanted_logits, wanted_deltas = (x[0] for x in flat([level[:, :, z]]))
            torch.testing.assert_close(logits[i][:, :, z], wanted_logits)
            found = deltas[i][:, :, z].unflatten(1, (3, 6))
            torch.testing.assert_close(found[:, :, in_plane].flatten(1, 2), wanted_deltas)
            assert (found[:, :, [2, 5]] == 0).all()


def test_classes_begin_at_the_prior():
    torch.manual_seed(0)
    head = RetinaNetHead3D(**_arguments(), prior_prob=0.02)
    logits, deltas = head([torch.zeros(1, 4, 2, 3, 3)])
    torch.testing.assert_close(logits[0].sigmoid(), torch.full((1, 6, 2, 3, 3), 0.02))
    assert deltas[0].shape == (1, 18, 2, 3, 3) and (deltas[0] == 0).all()
    softmax = tiny_model("RetinaUNet3D", "MODEL.RETINANET.PRIOR_PROB", 0.02).head
    (logits,), _ = softmax([torch.zeros(1, 16, 2, 3, 3)])
    probabilities = logits.unflatten(1, (2, 3)).softmax(dim=2)
    torch.testing.assert_close(probabilities[:, :, :2], torch.full((1, 2, 2, 2, 3, 3), 0.02))


def test_levels_have_the_same_number_of_anchors():
    cfg = tiny_config(
        "RetinaUNet3D",
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[10.0], [18.0, 20.0]]),
        *("MODEL.VOLUMETRIC.ANCHOR_DEPTHS", [[3.0], [6.0, 7.0]]),
    )
    with pytest.raises(ValueError, match=r"found levels with \[2, 4\] anchors per position"):
        RetinaNetHead3D(cfg, _arguments()["input_shape"])


def test_batch_norm_has_statistics_of_each_level():
    head = RetinaNetHead3D(**_arguments(), norm="BN")
    generator = torch.Generator().manual_seed(0)
    levels = [scale * torch.randn(2, 4, 3, 5, 5, generator=generator) for scale in (1.0, 9.0)]
    head(levels)
    conv, norms = head.cls_subnet[0], head.cls_subnet[1]
    for level, norm in zip(levels, norms, strict=True):
        mean = 0.1 * conv(level).mean(dim=(0, 2, 3, 4))  # the momentum of one step
        torch.testing.assert_close(norm.running_mean, mean)
    with torch.no_grad():
        norms.weight.copy_(torch.arange(1.0, 6.0))
        norms.bias.fill_(2.0)
    features = conv(levels[0])
    expected = F.batch_norm(features, None, None, norms.weight, norms.bias, training=True)
    torch.testing.assert_close(norms(features), expected)
    assert len(list(head.cls_subnet.parameters())) == 2 * 4
