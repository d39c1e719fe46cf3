from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.engine import load_config
from lesion_d2.modeling import MeanTeacher
from lesion_d2.modeling.meta_arch import mean_teacher

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from made_up_images import make_sample
from slow_boxes import slow_iou
from tiny_run import tiny_config, uldor_args
from torch import nn

_IDENTITY = torch.eye(3)[:2]
_SEG = "MODEL.RETINA_UNET.SEG_LOSS_WEIGHT"


def _rcnn(**changes):
    return load_config(
        uldor_args(
            "output",
            MODEL__ROI_HEADS__NAME="StandardROIHeads",
            MODEL__ROI_HEADS__NUM_CLASSES=1,
            **changes,
        )
    )


_DETECTORS = {
    "Retina U-Net": lambda: tiny_config(),
    "RetinaNet, softmax": lambda: tiny_config(
        MODEL__RETINA_UNET__SOFTMAX=True, MODEL__RETINA_UNET__SHEM_POOL=10
    ),
    "DetUNet": lambda: tiny_config(MODEL__META_ARCHITECTURE="DetUNet"),
    "Faster R-CNN": lambda: _rcnn(MODEL__MASK_ON=False),
    "Mask R-CNN": lambda: _rcnn(),
    "Faster R-CNN on fused images": lambda: _rcnn(
        MODEL__MASK_ON=False,
        MODEL__BACKBONE__NAME="build_fused_fpn_backbone",
        MODEL__SLICE_IMAGES__BACKBONE="build_densenet_backbone",
        MODEL__DENSENET__STEM_CHANNELS=4,
        MODEL__DENSENET__GROWTH_RATE=2,
        MODEL__FPN__IN_FEATURES=["c2", "c3", "c4"],
        MODEL__FPN__OUT_CHANNELS=8,
        MODEL__RETINANET__IN_FEATURES=["p2", "p3", "p4"],
        MODEL__RPN__IN_FEATURES=["p2", "p3", "p4"],
        MODEL__ROI_HEADS__IN_FEATURES=["p2", "p3", "p4"],
        MODEL__ANCHOR_GENERATOR__SIZES=[[8], [16], [32]],
    ),
    "U-Faster R-CNN+": lambda: _rcnn(MODEL__MASK_ON=False, MODEL__LESION_RCNN__SEG_LOSS_WEIGHT=1.0),
}


@pytest.fixture(params=list(_DETECTORS))
def detector(request):
    torch.manual_seed(0)
    return build_model(_DETECTORS[request.param]()).train()


def _batch():
    """Two images; both views are the same."""
    samples = [
        make_sample([(8, 10, 28, 26)], [0], 1),
        make_sample([(30, 6, 54, 24), (4, 30, 20, 60)], [0, 0], 2),
    ]
    return [{**s, "weak_image": s["image"], "slice_to_image": _IDENTITY} for s in samples]


def _losses(model, batch, seed=5):
    """Losses and gradients, from the same random numbers."""
    torch.manual_seed(seed)
    model.zero_grad()
    detector = model.student if isinstance(model, MeanTeacher) else model
    if hasattr(detector, "loss_normalizer"):
        detector.loss_normalizer = 100.0  # RetinaNet's running mean begins anew
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return losses


class _Finding(nn.Module):
    """A teacher that finds what it is told to."""

    def __init__(self, boxes, scores):
        super().__init__()
        self.found = boxes, scores
        self.views = []

    def forward(self, batched_inputs):
        self.views.append(batched_inputs)
        return [{"instances": _found(*each)} for each in zip(*self.found, strict=True)]


def _found(boxes, scores) -> Instances:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(
        (64, 64),
        pred_boxes=Boxes(boxes),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
    )


_PSEUDO_LABEL = [34.0, 36.0, 58.0, 56.0]


def _with_finds(detector, mode, **options) -> MeanTeacher:
    """The teacher finds a new lesion on the first image, and one that is annotated."""
    model = MeanTeacher(detector, pseudo_label_mode=mode, **options).train()
    boxes = [[_PSEUDO_LABEL, [8, 10, 28, 25]], [[10, 40, 14, 44]]]
    model.teacher = _Finding(boxes, [[0.95, 0.99], [0.5]])
    return model


def test_without_pseudo_labels_a_step_is_the_plain_detector_s(detector):
    batch = _batch()
    plain = _losses(detector, batch)
    gradients = [p.grad if p.grad is None else p.grad.clone() for p in detector.parameters()]
    for mode in ("none", "add", "ignore"):
        model = MeanTeacher(detector, pseudo_label_mode=mode, score_threshold=1.0).train()
        losses = _losses(model, batch)
        assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in plain.items()}
        for parameter, expected in zip(detector.parameters(), gradients, strict=True):
            assert (parameter.grad is None) == (expected is None)
            assert expected is None or torch.equal(parameter.grad, expected)
        assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


def test_added_lesions_count_as_annotated_ones(detector):
    batch = _batch()
    model = _with_finds(detector, "add")
    found = _losses(model, batch)
    annotated = make_sample([_PSEUDO_LABEL, (8, 10, 28, 26)], [0, 0], 1)["instances"]
    # The mask of the pseudo-label: the ellipse 5 pixels inside the box.
    inner = [_PSEUDO_LABEL[0] + 5, _PSEUDO_LABEL[1] + 5, _PSEUDO_LABEL[2] - 5, _PSEUDO_LABEL[3] - 5]
    annotated.gt_masks.tensor[0] = _ellipse(*inner)
    by_hand = _losses(detector, [{**batch[0], "instances": annotated}, batch[1]])
    plain = _losses(detector, batch)
    for name, loss in by_hand.items():
        assert found[name].item() == loss.item(), name
    assert any(plain[name].item() != loss.item() for name, loss in by_hand.items())
    counts = model.counts
    assert (counts["images"], counts["pseudo_labels"]) == (2, 1)


def _ellipse(x1, y1, x2, y2) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1


def test_the_teacher_sees_the_weak_view_and_no_annotation(detector):
    model = _with_finds(detector, "add")
    batch = [{**s, "weak_image": s["image"] + 1, "file_name": "1.png"} for s in _batch()]
    _losses(model, batch)
    [views] = model.teacher.views
    for view, sample in zip(views, batch, strict=True):
        assert view["image"] is sample["weak_image"]
        assert set(view) == {"image", "file_name", "height", "width"}
    idle = _with_finds(detector, "none")
    _losses(idle, batch)
    assert idle.teacher.views == []


def test_ignored_anchors_of_a_retina_net_add_nothing_to_its_loss():
    torch.manual_seed(0)
    detector = build_model(tiny_config(**{_SEG.replace(".", "__"): 0.0})).train()
    batch = _batch()[:1]
    model = MeanTeacher(detector, pseudo_label_mode="ignore").train()
    model.teacher = _Finding([[_PSEUDO_LABEL]], [[0.95]])
    recorded = {}

    def record(head, args, output):
        recorded.update(levels=args[0], logits=output[0])
        for level in output[0]:
            level.retain_grad()

    handle = detector.head.register_forward_hook(record)
    losses = _losses(model, batch)
    handle.remove()
    anchors = detector.anchor_generator(recorded["levels"])
    logits = torch.cat([_by_anchor(x.detach()) for x in recorded["logits"]])
    gradients = torch.cat([_by_anchor(x.grad) for x in recorded["logits"]])
    # By hand: each anchor's best lesion, the pseudo-label being the second.
    total, on_pseudo_label, num_positive = 0.0, 0, 0
    boxes = torch.cat([a.tensor for a in anchors])
    truth = [[8.0, 10.0, 28.0, 26.0], _PSEUDO_LABEL]
    overlaps = np.array([[slow_iou(box, lesion) for lesion in truth] for box in boxes.tolist()])
    best = overlaps.argmax(axis=1)
    highest = overlaps.max(axis=0)  # the best anchor of each lesion is always its own
    for i, (row, lesion) in enumerate(zip(overlaps, best, strict=True)):
        own = [row[k] == highest[k] for k in (0, 1)]
        if row[lesion] >= 0.5 or any(own):
            number = lesion
            if number == 1:
                on_pseudo_label += 1
                assert gradients[i] == 0
                continue
            target = 1.0
            num_positive += 1
        elif row[lesion] >= 0.4:
            assert gradients[i] == 0
            continue
        else:
            target = 0.0
        total += _focal(logits[i].sigmoid().item(), target)
    assert on_pseudo_label > 0 and num_positive > 0
    normalizer = 0.9 * 100 + 0.1 * num_positive
    assert losses["loss_cls"].item() == pytest.approx(total / normalizer, rel=1e-4)


def _by_anchor(level):
    """One class's numbers (1, A, h, w) in the order of the anchors."""
    return level[0].permute(1, 2, 0).flatten()


def _focal(p: float, target: float) -> float:
    if target:
        return -0.25 * (1 - p) ** 2 * np.log(p)
    return -0.75 * p**2 * np.log(1 - p)


def test_ignored_proposals_are_never_drawn(monkeypatch):
    torch.manual_seed(0)
    detector = build_model(_rcnn(MODEL__MASK_ON=False)).train()
    drawn = []
    draw = ROIHeads.label_and_sample_proposals

    def record(self, proposals, targets):
        jittered = torch.tensor(_PSEUDO_LABEL) + torch.tensor(
            [[0.0] * 4, [1.0, 0, 1, 0], [0, 2.0, 0, 1]]
        )
        lesion = torch.tensor([[9.0, 10.0, 28.0, 27.0]])
        more = Instances((64, 64), proposal_boxes=Boxes(torch.cat([jittered, lesion])))
        more.objectness_logits = torch.full((4,), 9.0)
        proposals = [Instances.cat([proposals[0], more]), *proposals[1:]]
        drawn.append(draw(self, proposals, targets))
        return drawn[-1]

    monkeypatch.setattr(ROIHeads, "label_and_sample_proposals", record)
    on_pseudo_label = {}
    for mode in ("add", "ignore"):
        _losses(_with_finds(detector, mode), _batch())
        first = drawn[-1][0]
        overlaps = [slow_iou(box, _PSEUDO_LABEL) for box in first.proposal_boxes.tensor.tolist()]
        on_pseudo_label[mode] = first.gt_classes[torch.tensor(overlaps) >= 0.5].tolist()
        assert (first.gt_classes == 0).any() and (first.gt_classes == 1).any()
    # The box itself is among them.
    assert len(on_pseudo_label["add"]) >= 4 and set(on_pseudo_label["add"]) == {0}
    assert on_pseudo_label["ignore"] == []


def test_pixels_of_ignored_lesions_are_not_segmented():
    torch.manual_seed(0)
    detector = build_model(tiny_config(MODEL__META_ARCHITECTURE="DetUNet")).train()
    logits = {}

    def record(module, args, output):
        output.retain_grad()
        logits["all"] = output

    detector.head.register_forward_hook(record)
    _losses(_with_finds(detector, "ignore"), _batch())
    inner = _ellipse(
        _PSEUDO_LABEL[0] + 5, _PSEUDO_LABEL[1] + 5, _PSEUDO_LABEL[2] - 5, _PSEUDO_LABEL[3] - 5
    )
    gradient = logits["all"].grad[0].abs().sum(dim=0)
    assert inner.sum() > 50
    assert (gradient[inner] == 0).all() and (gradient[~inner] > 0).all()


def test_evaluation_is_the_teacher_s_and_it_never_trains():
    torch.manual_seed(0)
    model = MeanTeacher(build_model(tiny_config(MODEL__RESNETS__NORM="BN")))
    batch = _batch()
    for mode in (True, False):
        model.train(mode)
        assert model.student.training == mode
        assert not any(module.training for module in model.teacher.modules())
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(0.1)
        found, expected = model(batch), model.teacher.eval()(batch)
    for ours, wanted in zip(found, expected, strict=True):
        assert torch.equal(ours["instances"].scores, wanted["instances"].scores)


class _Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)


def test_the_teacher_is_the_moving_average_of_parameters_and_buffers():
    momentum, steps = 0.9, 30
    model = MeanTeacher(_Small(), momentum=momentum)
    rng = np.random.default_rng(0)
    first = {k: v.double().numpy().copy() for k, v in model.teacher.state_dict().items()}
    history = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            for tensor in (*model.student.parameters(), *model.student.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.from_numpy(rng.normal(size=tensor.shape)))
                else:
                    tensor.fill_(step)
        history.append(
            {k: v.double().numpy().copy() for k, v in model.student.state_dict().items()}
        )
        model.update_teacher()

    for name, value in model.teacher.state_dict().items():
        if name == "norm.num_batches_tracked":
            assert value == steps
            continue
        # The closed form: m^n t_0 + (1 - m) sum over k of m^(n - k) s_k.
        expected = momentum**steps * first[name] + (1 - momentum) * sum(
            momentum ** (steps - k) * s[name] for k, s in enumerate(history, start=1)
        )
        assert value.numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("borders", [False, True])
def test_detections_come_to_where_the_mapper_puts_lesions(tiny_phantom, borders):
    """A teacher that finds just the hidden lesions finds them in every student's view."""
    cfg = tiny_config(
        MODEL__MEAN_TEACHER__ENABLED=True,
        INPUT__AUG__RESIZE_RANGE=(0.8, 1.2),
        INPUT__AUG__HFLIP_PROB=0.5,
        INPUT__AUG__VFLIP_PROB=0.5,
        INPUT__CT__CROP_TO_BODY=borders,
        INPUT__CT__IMAGE_SIZE=96,
    )
    mapper = LesionDatasetMapper(cfg, True)
    np.random.seed(3)
    sizes, num_found = set(), 0

    for image in DatasetCatalog.get("phantom_train") * 2:
        hidden = image["annotations"]
        sample = mapper({**image, "annotations": [], "hidden_annotations": hidden})
        assert sample["weak_image"].shape[1:].numel() and len(sample["instances"]) == 0
        sizes.add(tuple(sample["image"].shape))
        model = MeanTeacher(nn.Identity(), pseudo_label_mode="add")
        boxes = [a["bbox"] for a in hidden]
        model.teacher = _Finding([boxes], [[0.9] * len(boxes)])
        [found] = model.generate_pseudo_labels([sample])
        expected = sample["hidden_boxes"].tensor
        assert found.pred_boxes.tensor.numpy() == pytest.approx(expected.numpy(), abs=0.01)
        assert found.image_size == tuple(sample["image"].shape[1:])
        num_found += len(found)
        counts = model.counts
        assert counts["hits"] == counts["found"] == len(found) == counts["hidden"]
    assert len(sizes) > 5 and num_found > 10


@pytest.mark.parametrize("name", ["Mask R-CNN", "Retina U-Net, masks"])
def test_the_teacher_computes_no_masks_for_pseudo_labels(name):
    cfg = _rcnn() if name == "Mask R-CNN" else tiny_config(MODEL__SEG_HEAD__PREDICT_MASKS=True)
    torch.manual_seed(0)
    model = MeanTeacher(build_model(cfg), score_threshold=0.001).train()
    calls = []
    part = "roi_heads.mask_head" if name == "Mask R-CNN" else "seg_predictor"
    model.teacher.get_submodule(part).register_forward_hook(lambda *args: calls.append(1))
    found = model.generate_pseudo_labels(_batch())
    assert sum(map(len, found)) > 0 and not calls
    [first, _] = model.eval()(_batch())
    assert first["instances"].has("pred_masks") and calls


def _sorted_boxes(found: Instances) -> np.ndarray:
    """(N, 5) scores and boxes in one order, whichever of equal scores came first."""
    rows = torch.cat([found.scores[:, None], found.pred_boxes.tensor], dim=1).numpy()
    return np.array(sorted(rows.tolist(), key=lambda row: [round(v, 3) for v in row]))


@pytest.mark.parametrize("name", list(_DETECTORS))
def test_leaving_out_what_is_below_tau_changes_no_pseudo_label(name, monkeypatch):
    torch.manual_seed(0)
    model = MeanTeacher(build_model(_DETECTORS[name]()), score_threshold=1e-9).train()
    scores = torch.cat([found.scores for found in model.generate_pseudo_labels(_batch())])
    model.score_threshold = float(scores.median()) if len(scores) else 0.5
    sparing = model.generate_pseudo_labels(_batch())
    for limited in ("without_masks", "without_low_scores"):
        monkeypatch.setattr(mean_teacher, limited, lambda model, *args: model)
    for ours, expected in zip(sparing, model.generate_pseudo_labels(_batch()), strict=True):
        assert _sorted_boxes(ours) == pytest.approx(_sorted_boxes(expected), abs=1e-4)
    assert sum(map(len, sparing)) > 0 or name == "DetUNet"


def test_it_does_not_look_before_its_time():
    torch.manual_seed(0)
    model = _with_finds(build_model(tiny_config()), "add", start_iter=3)
    for iteration in (2, 3):
        with EventStorage(iteration):
            model(_batch())
        assert len(model.teacher.views) == iteration - 2


def test_on_annotated_volumes_only_their_lesions_are_pseudo_labels():
    model = _with_finds(nn.Identity(), "add")
    batch = _batch()
    expected = {(): 0, ((0, 0, 9, 9),): 0, ((33, 36, 58, 56), (0, 0, 9, 9)): 1}
    for lesions, number in expected.items():
        batch[0]["volume_boxes"] = [list(box) for box in lesions]
        assert [len(found) for found in model.generate_pseudo_labels(batch)] == [number, 0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"momentum": 1.0}, "MOMENTUM: found 1.0"),
        ({"pseudo_label_mode": "drop"}, "PSEUDO_LABELS: found 'drop'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MeanTeacher(nn.Identity(), **options)
