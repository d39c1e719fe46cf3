"""What the benchmark measures of models of slices."""

import json
import re

from lesion_d2.data.deeplesion.key_slices import load_deeplesion
from lesion_d2.data.phantoms.phantom import write_phantom
from lesion_d2.engine.hard_negatives import HardNegativeMiner
from lesion_d2.experiments.benchmark import configs, inputs, timing
from lesion_d2.experiments.benchmark.models import (
    bai,
    clipping,
    peers,
    retinanet,
    running,
    scans,
    tao,
    uldor,
)
from lesion_d2.experiments.benchmark.models.operations import count_operations
from lesion_d2.experiments.benchmark.timing import Row
from lesion_d2.modeling import MeanTeacher

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("quick_weights")


CPU_CONFIGS = [configs.CPU_CONFIG, configs.ZLOCHA_CPU_CONFIG]


def small_config(file):
    cfg = configs.load_config(file, "cpu")
    cfg.INPUT.CT.IMAGE_SIZE, cfg.SOLVER.IMS_PER_BATCH = 64, 2
    return cfg


@pytest.mark.parametrize("masks", [False, True])
def test_output_is_as_told_whatever_the_config_says(masks):
    cfg = configs.load_config(configs.CPU_CONFIG, "cpu")
    for said in (False, True):
        cfg.MODEL.SEG_HEAD.PREDICT_MASKS, cfg.MODEL.RETINA_UNET.CALIBRATION = said, 0.3
        told = configs.with_output(cfg, masks=masks).MODEL
        assert told.SEG_HEAD.PREDICT_MASKS is masks and told.RETINA_UNET.CALIBRATION == 0
        assert configs.with_output(cfg, calibration=1.0).MODEL.RETINA_UNET.CALIBRATION == 1
        assert cfg.MODEL.SEG_HEAD.PREDICT_MASKS is said


@pytest.mark.parametrize("file", CPU_CONFIGS, ids=lambda file: file.stem)
def test_the_retinanet_has_the_same_levels_anchors_and_heads(file):
    cfg = small_config(file)
    unet, net = build_model(cfg), build_model(configs.as_retinanet(cfg))
    assert type(net).__name__ == "RetinaNet" and type(unet).__name__ == "RetinaUNet"
    images = torch.zeros(1, 3, 64, 64)
    levels = cfg.MODEL.RETINANET.IN_FEATURES
    features = [[model.backbone(images)[level] for level in levels] for model in (unet, net)]
    for ours, theirs in zip(*features, strict=True):
        assert ours.shape == theirs.shape
    anchors = [torch.cat([a.tensor for a in m.anchor_generator(features[0])]) for m in (unet, net)]
    assert torch.equal(*anchors)
    for part in ("backbone.bottom_up", "head"):
        shapes = [[p.shape for p in m.get_submodule(part).parameters()] for m in (unet, net)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["build_vgg_fpn_backbone", "build_other_unet_fpn_backbone"])
def test_a_backbone_without_its_fpn_is_refused(name):
    cfg = configs.load_config(configs.CPU_CONFIG, "cpu")
    cfg.MODEL.BACKBONE.NAME = name
    with pytest.raises(ValueError, match=f"MODEL.BACKBONE.NAME: found '{name}', expected a U-FPN"):
        configs.as_retinanet(cfg)


def test_a_step_trains_and_an_inference_has_all_the_detections_allowed():
    cfg = small_config(configs.ZLOCHA_CPU_CONFIG)
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    cfg = configs.with_all_candidates(cfg)
    batch = inputs.random_batch(cfg)
    assert [tuple(x["image"].shape) for x in batch] == [(3, 64, 64)] * 2
    for variant in (configs.with_output(cfg, calibration=1.0), configs.as_retinanet(cfg)):
        model = running.build_for_device(variant)
        before = [p.detach().clone() for p in model.parameters()]
        running.training_step(model, batch)()
        assert any((p != old).any() for p, old in zip(model.parameters(), before, strict=True))
        assert running.infer(model.eval(), batch) == 20


def test_compared_detectors_have_the_same_weights_and_so_nearly_the_same_boxes():
    cfg = configs.with_all_candidates(small_config(configs.ZLOCHA_CPU_CONFIG))
    variants = [cfg, configs.with_output(cfg, calibration=1.0), configs.as_retinanet(cfg)]
    detectors = [running.build_for_device(variant) for variant in variants]
    running.training_step(detectors[0], inputs.random_batch(cfg))()
    running.share_weights(detectors)
    first, *others = (dict(detector.state_dict()) for detector in detectors)
    assert others[0].keys() == first.keys() and set(others[1]) < set(first)
    for state in others:
        assert all(torch.equal(value, first[name]) for name, value in state.items())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_rows_of_zlocha_have_the_limits_of_its_issue(monkeypatch, device):
    # The models run on the CPU all the same.
    monkeypatch.setattr(retinanet, "load_config", lambda file, device: small_config(file))
    monkeypatch.setattr(running, "peak_memory", lambda work, cfg: 1.0)
    monkeypatch.setattr(running, "WARM_UP", 1)
    monkeypatch.setattr(configs, "ZLOCHA_GPU_CONFIG", configs.ZLOCHA_CPU_CONFIG)
    rows = list(retinanet.measure_zlocha(device, repeats=1))
    ratios = [row for row in rows if row.unit == "x"]
    title = f"Zlocha / RetinaNet, {device}: "

    assert {row.name.removeprefix(title): row.limit for row in ratios} == {
        "training step": 1.6,
        "inference": 1.1,
        "calibrated inference": 1.35,
        "memory of a step": None,
        "memory of an inference": None,
        "memory of a calibrated inference": None,
    }
    assert all(row.measured > 0 for row in rows)

    times = [row for row in rows if row.unit == "ms"]
    assert len(times) == (3 if device == "cuda" else 0) and len(rows) == len(ratios) + len(times)
    assert ["41 ms on a GTX 1080" in row.note for row in times] == [False, True, True][: len(times)]


def small_rcnn():
    """ULDor's config at a size at which it has 20 detections an image."""
    cfg = small_config(configs.ULDOR_CPU_CONFIG)
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    return cfg


def test_the_mask_rcnn_differs_by_the_class_of_false_positives_alone():
    ours = build_model(small_rcnn())
    theirs = build_model(configs.as_mask_rcnn(small_rcnn()))
    assert type(ours).__name__ == "LesionRCNN" and type(theirs).__name__ == "GeneralizedRCNN"
    assert type(theirs.roi_heads).__name__ == "StandardROIHeads"
    shapes = [{n: tuple(p.shape) for n, p in m.named_parameters()} for m in (ours, theirs)]
    assert shapes[0].keys() == shapes[1].keys()
    differ = {name for name, shape in shapes[0].items() if shapes[1][name] != shape}
    parts = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
    assert differ == {f"roi_heads.{part}.{w}" for part in parts for w in ("weight", "bias")}


@pytest.fixture(scope="module")
def few_slices(tiny_phantom, tmp_path_factory):
    """The folder of a data set of the first slices of the tiny phantom."""
    whole, root = tiny_phantom / "phantom", tmp_path_factory.mktemp("few") / "phantom"
    root.mkdir()
    (root / "Images_png").symlink_to(whole / "Images_png")
    rows = (whole / "DL_info.csv").read_text().splitlines(keepends=True)
    (root / "DL_info.csv").write_text("".join(rows[:10]))
    return root


def test_mining_is_measured_with_all_detections_and_negatives_there_can_be(few_slices):
    torch.manual_seed(0)
    with inputs.registered(few_slices) as name:
        cfg = configs.with_most_negatives(configs.with_all_proposals(small_rcnn()))
        cfg.DATASETS.TRAIN, cfg.DATALOADER.NUM_WORKERS = (name,), 0
        model, miner = running.build_for_device(cfg), HardNegativeMiner(cfg)
        counts = uldor.infer_all(model, miner.loaders()[name])
        mined = miner.mine(model, 0)
        assert counts == [20] * len(DatasetCatalog.get(name)) == [20] * mined.num_images
    counts = [len(found) for found in mined.by_image.values()]
    assert max(counts) == 3 and sum(counts) > 2 * mined.num_images
    assert mined.num_good == 0


def test_the_rows_of_uldor_have_the_limit_of_its_issue(monkeypatch, few_slices, tmp_path):
    torch.manual_seed(0)
    monkeypatch.setattr(uldor, "load_config", lambda file, device: small_rcnn())
    monkeypatch.setattr(uldor, "WARM_UP", 0)
    asked, root = [], few_slices
    monkeypatch.setattr(uldor, "prepare_phantom", lambda *a, **b: asked.append((*a, b)) or root)
    step, mining = uldor.measure_uldor("cpu", tmp_path, repeats=1)
    assert asked == [(tmp_path, {"num_patients": 8, "size": 256})]
    assert step.limit is None and step.measured > 0
    assert "2 images of 3 x 64 x 64, uldor_phantom" in step.note
    assert mining.limit == 1.1 and not mining.at_least and mining.measured > 0
    number = len(load_deeplesion(root / "DL_info.csv", root / "Images_png", None))
    told = f"{number} images, at least 20 detections per image, "
    assert told in mining.note
    negatives = int(mining.note.split(told)[1].split(" hard negatives")[0])
    # Masks of an untrained model may be empty, which makes no example.
    assert 2 * number < negatives <= 3 * number


def test_on_a_gpu_uldor_is_measured_with_large_slices(monkeypatch, tiny_phantom, tmp_path):
    # The models run on the CPU all the same.
    monkeypatch.setattr(uldor, "load_config", lambda file, device: small_rcnn())
    monkeypatch.setattr(configs, "ULDOR_GPU_CONFIG", configs.ULDOR_CPU_CONFIG)
    monkeypatch.setattr(uldor, "_compare_steps", lambda *a: Row("step", 1.0))
    asked, root = [], tiny_phantom / "phantom"
    monkeypatch.setattr(uldor, "prepare_phantom", lambda *a, **b: asked.append((*a, b)) or root)
    monkeypatch.setattr(uldor, "_compare_mining", lambda *a: Row("mining", 1.0))
    assert [row.name for row in uldor.measure_uldor("cuda", tmp_path)] == ["step", "mining"]
    assert asked == [(tmp_path, {"num_patients": 8, "size": 512})]


def test_a_step_of_the_mean_teacher_has_pseudo_labels_and_moves_the_teacher():
    torch.manual_seed(0)
    cfg = configs.with_all_proposals(small_rcnn())
    cfg.MODEL.MASK_ON = False
    batch = bai.with_weak_views(inputs.random_batch(cfg), masks=False)
    assert not any(sample["instances"].has("gt_masks") for sample in batch)

    model = MeanTeacher(cfg, running.build_for_device(cfg)).train()
    number = bai.lower_score_threshold(model, batch)
    assert (
        number
        == sum(map(len, model.generate_pseudo_labels(batch)))
        == bai.NUM_PSEUDO_LABELS * len(batch)
    )

    before = {name: value.clone() for name, value in model.teacher.named_parameters()}
    seen = []
    model.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    bai.mean_teacher_step(model, batch)()
    [given] = seen
    added = [len(a["instances"]) - len(b["instances"]) for a, b in zip(given, batch, strict=True)]
    assert sum(added) == number

    students = dict(model.student.named_parameters())
    assert any(not students[name].equal(value) for name, value in before.items())
    for name, value in model.teacher.named_parameters():
        expected = 0.999 * before[name] + 0.001 * students[name]
        assert torch.allclose(value, expected, atol=1e-7)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_row_of_bai_has_the_limit_of_its_issue(monkeypatch, device):
    torch.manual_seed(0)  # so that the untrained detector finds enough
    files = []
    monkeypatch.setattr(bai, "load_config", lambda file, device: files.append(file) or small_rcnn())
    monkeypatch.setattr(bai, "WARM_UP", 0)
    monkeypatch.setattr(
        bai, "time_calls", lambda calls, **o: timing.time_calls(calls, **{**o, "device": "cpu"})
    )
    [row] = bai.measure_bai(device, repeats=1)
    assert row.limit == 1.5 and not row.at_least and row.measured > 0
    name = "add" if device == "cuda" else "add_phantom"
    assert files == [configs.CONFIGS / "mean_teacher" / f"{name}.yaml"]
    number = bai.NUM_PSEUDO_LABELS * 2
    assert f"2 images of 3 x 64 x 64, {number} pseudo-labels, {name}" in row.note
    shares = re.findall(r"(\d+\.\d\d) x", row.note)
    assert len(shares) == 2 and float(shares[0]) > 0


def small_3dce(file, device="cpu"):
    """A phantom's config of 3DCE in place of one, thinner, with 20 detections an image."""
    phantom = file.with_stem(file.stem.removesuffix("_phantom") + "_phantom")
    cfg = configs.load_config(phantom, "cpu")
    cfg.MODEL.VGG.WIDTH, cfg.INPUT.CT.PIXEL_SPACING = 4, 8.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.TEST.DETECTIONS_PER_IMAGE, cfg.SOLVER.IMS_PER_BATCH = 20, 2
    return cfg


def test_stacks_of_several_sizes_share_all_weights_but_those_that_join_their_images():
    files = (configs.TAO_CONFIG, configs.TAO_STACK_CONFIG)
    detectors = [running.build_for_device(small_3dce(file)) for file in files]
    running.share_weights(detectors)
    single, stack = (detector.state_dict() for detector in detectors)
    assert single.keys() == stack.keys()
    differ = {name for name in single if not torch.equal(single[name], stack[name])}
    assert differ == {"roi_heads.box_head.fc1.weight"}


def test_drawn_attention_does_not_let_everything_through():
    backbone = running.build_for_device(small_3dce(configs.TAO_ATTENTION_CONFIG)).backbone
    features = torch.rand(1, 3, 32, 4, 4)
    for drawn in (False, True):
        if drawn:
            tao.draw_attention(backbone)
        for attention in (backbone.contextual_attention, backbone.spatial_attention):
            assert (attention.weights(features) < 0.99).any() == drawn


@pytest.fixture(scope="module")
def long_phantom(tmp_path_factory):
    """A phantom data set whose test split has 15 slices at 2 mm, and 3 times 7 at 5 mm."""
    root = tmp_path_factory.mktemp("long") / "phantom"
    write_phantom(root, num_patients=6, size=64, extent_mm=14.0, workers=1)
    return root


@pytest.mark.parametrize(("device", "size"), [("cpu", 256), ("cuda", 512)])
def test_the_rows_of_tao_have_the_limits_of_its_issue(
    monkeypatch, long_phantom, tmp_path, device, size
):
    # The models run on the CPU all the same.
    monkeypatch.setattr(tao, "load_config", small_3dce)
    monkeypatch.setattr(tao, "WARM_UP", 0)
    monkeypatch.setattr(
        tao, "time_calls", lambda calls, **o: timing.time_calls(calls, **{**o, "device": "cpu"})
    )
    names, asked = DatasetCatalog.list(), []

    def prepare(*args, **phantom):
        asked.append((*args, phantom))
        return long_phantom

    monkeypatch.setattr(tao, "prepare_phantom", prepare)
    rows = list(tao.measure_tao(device, tmp_path, repeats=1))
    assert asked == [(tmp_path, inputs.STACKS)] and DatasetCatalog.list() == names
    assert [row.limit for row in rows] == [3.1, 1.05, 0.5, None]
    assert all(row.measured > 0 and row.name.startswith(f"3DCE, {device}, ") for row in rows)
    stack, attended, convolved, _ = rows
    for row in (stack, attended):
        assert f"1 stack of {size} x {size}, 20/20/20 detections" in row.note
        assert row.note.endswith(", one thread") == (device == "cpu")
    number = round(convolved.measured * 36 * 5)
    assert convolved.note.startswith(f"{number} against {36 * 5} images, ")
    # Two images more than the volume has slices: one beyond either end.
    assert f", {17 / (15 * 5):.2f} at 2 mm, " in convolved.note
    assert f"; 36 slices, the same {36 * 20} detections, " in convolved.note


def test_other_detections_with_reused_features_end_the_benchmark():
    def result(score):
        found = Instances((9, 9), pred_boxes=Boxes(torch.ones(1, 4)))
        found.scores, found.pred_classes = torch.tensor([score]), torch.zeros(1, dtype=torch.int64)
        return [tao.SliceResult("1_1", 2.0, 5, found)]

    tao.check_same(result(0.5), result(0.5))
    with pytest.raises(RuntimeError, match="1_1: found other detections with reused features"):
        tao.check_same(result(0.5), result(0.5 + 1e-7))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_row_of_scans_has_the_limit_of_its_issue(monkeypatch, tmp_path, device):
    pytest.importorskip("pydicom")
    pytest.importorskip("jsonschema")
    asked = []

    def small(file, device):
        asked.append(file)
        return tiny_config()

    monkeypatch.setattr(scans, "load_config", small)
    [row] = scans.measure_scans(device, tmp_path, num_slices=6, size=64)
    assert row.limit == 1.15 and not row.at_least and row.measured > 0
    assert asked == [configs.GPU_CONFIG if device == "cuda" else configs.CPU_CONFIG]
    found = len(json.loads((tmp_path / "findings.json").read_text())["findings"])
    assert f"6 slices of 64 x 64 as DICOM, 120 detections with masks, {found} fi" in row.note
    assert 0 < found <= 50
    # Of the same pass, so that the whole cannot take less than its part.
    assert row.measured >= 1


def test_calls_of_a_model_are_timed_within_the_block_alone(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(scans.time, "thread_time", lambda: next(now))
    model = torch.nn.Conv2d(1, 1, 1)
    with scans.timed_calls(model, "cpu") as seconds:
        for _ in range(3):
            model(torch.zeros(1, 1, 2, 2))
    model(torch.zeros(1, 1, 2, 2))
    assert seconds == [1, 1, 1]


def test_clipping_takes_a_few_operations():
    each, together = clipping.measure_clipping("cpu", repeats=1)
    for row in (each, together):
        found = re.search(r"(\d+) against (\d+) operations", row.note)
        ours, theirs = map(int, found.groups())
        assert ours < theirs / 3 and row.measured > 0 and row.limit == 1
    assert "norm / Detectron2's norm" in each.name and "full_model_norm" in together.name


def test_peers_are_compared_on_the_same_images(monkeypatch):
    def thin_config(file, device):
        cfg = load_config(file, device)
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
        return cfg

    load_config = configs.load_config
    monkeypatch.setattr(peers, "load_config", thin_config)
    monkeypatch.setattr(peers, "_SIZES", {"cpu": 64})
    monkeypatch.setattr(peers, "_NUM_BOXES", 200)
    monkeypatch.setattr(peers, "WARM_UP", 1)
    monkeypatch.setattr(running, "WARM_UP", 1)
    rows = list(peers.measure_peers("cpu", repeats=1))
    assert [row.name.split(",")[0] for row in rows[:2]] == [
        "RetinaUNet / torchvision's RetinaNet",
        "Detectron2's RetinaNet / torchvision's RetinaNet",
    ]
    assert all(row.measured > 0 for row in rows)
    operations = rows[4:]  # none where there is no MONAI
    assert all("the same results" in row.note and "NOT" not in row.note for row in operations)


def test_operations_are_those_of_the_convolutions():
    cfg = small_config(configs.CPU_CONFIG)
    infer, step = count_operations(configs.with_output(cfg))
    net_infer, net_step = count_operations(configs.as_retinanet(cfg))
    # Pixels, channels in and out, and kernel of P1's and P0's convolutions, and of the logits'.
    decoder = {
        "reduce_p2": (16**2, 48, 16, 1),
        "lateral_p1": (32**2, 32, 16, 1),
        "reduce_p1": (32**2, 16, 8, 3),
        "lateral_p0.0": (64**2, 3, 8, 3),
        "lateral_p0.1": (64**2, 8, 8, 3),
        "output_p0": (64**2, 8, 8, 3),
        "logits": (64**2, 8, 2, 1),
    }
    operations = {name: 2 * p * i * o * k**2 for name, (p, i, o, k) in decoder.items()}
    # The gradients of outputs go to weights and inputs, but not to the image.
    assert step - net_step == 3 * sum(operations.values()) - operations["lateral_p0.0"]
    assert infer == net_infer > 0
