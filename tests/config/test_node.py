from pathlib import Path

import lesion_d2
from lesion_d2.config import (
    LesionConfig,
    add_lesion_config,
    broadcast_pixel_values,
)

import pytest
from detectron2.config import CfgNode, get_cfg
from made_up_configs import write


def test_bases_are_merged_in_order(tmp_path, cfg):
    file = write(
        tmp_path,
        a="_BASE_: [b.yaml, c.yaml]\nSOLVER: {MAX_ITER: 5}\nVERSION: 2",
        b="SOLVER: {MAX_ITER: 1, BASE_LR: 0.5, GAMMA: 0.25}",
        c="_BASE_: b.yaml\nSOLVER: {BASE_LR: 0.125}\nDATASETS: {TRAIN: [x]}",
    )
    cfg.merge_from_file(file)
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, solver.BASE_LR, solver.GAMMA) == (5, 0.125, 0.25)
    assert cfg.DATASETS.TRAIN == ("x",) and type(cfg.SOLVER) is LesionConfig


def test_a_base_is_not_changed_by_what_is_written_over_it(tmp_path):
    file = write(tmp_path, a="_BASE_: [b.yaml, c.yaml, b.yaml]", b="A: {B: 1}", c="A: {B: 2, C: 3}")
    assert LesionConfig.load_yaml_with_base(file) == {"A": {"B": 1, "C": 3}}


def test_bases_are_read_once_each(tmp_path):
    files = {f"f{n}": f"_BASE_: [f{n + 1}.yaml, f{n + 1}.yaml]" for n in range(18)}
    file = write(tmp_path, a="_BASE_: f0.yaml", f18="A: 1", **files)  # 2^18 ways lead to f18
    assert LesionConfig.load_yaml_with_base(file) == {"A": 1}


@pytest.mark.parametrize(
    "text, message",
    [
        ("_BASE_: a.yaml", "a.yaml: _BASE_: found .*a.yaml, which is based on it"),
        ("_BASE_: b.yaml", "b.yaml: _BASE_: found .*a.yaml, which is based on it"),
        ("_BASE_: 5", "a.yaml: _BASE_: found 5, expected a file's path"),
        ("_BASE_: null", "a.yaml: _BASE_: found None, expected a file's path"),
        ("_BASE_: {x: 1}", "a.yaml: _BASE_: found {'x': 1}, expected a file's path"),
        ("_BASE_: [[b.yaml]]", r"a.yaml: _BASE_: found \['b.yaml'\], expected a file's path"),
        ("_BASE_: ''", "a.yaml: _BASE_: found '', expected a file's path"),
        (f"_BASE_: [{', '.join(['c.yaml'] * 21)}]", "a.yaml: _BASE_: found 21 files, expected"),
        ("_BASE_: gone.yaml", "gone.yaml: does not exist, expected a config file"),
        (
            "_BASE_: configs/tao/parts/phantom.yaml",
            r"phantom.yaml: does not exist, .* \(configs/tao is now configs/3dce_attention\)",
        ),
        ("_BASE_: .", "does not exist"),
        ("_BASE_: 'http://127.0.0.1:9/a.yaml'", "refused"),
        ("MODEL: 5", "^MODEL: found 5, expected keys below it"),
        ("_BASE_: evil.yaml", "evil.yaml: found invalid YAML .line 1: found the tag"),
        ("_BASE_: f0.yaml", "f19.yaml: _BASE_: found more than 20 nested files, expected fewer"),
        (
            "_BASE_: c.yaml\nA: {B: {C: 1}}",
            "a.yaml: A.B: found keys, expected a value as in _BASE_, such as 1",
        ),
        ("", "a.yaml: found nothing, expected keys such as MODEL"),
        ("- MODEL", r"a.yaml: found \['MODEL'\], expected keys"),
        ("MODEL", "a.yaml: found 'MODEL', expected keys"),
        ("5: 1", "a.yaml: found the key 5, expected text"),
        ("MODEL: {FPN: {null: 1}}", "a.yaml: MODEL.FPN: found the key None, expected text"),
        ("VERSION: two", "VERSION: found 'two', expected 2"),
        ("VERSION: 1", "VERSION: found 1, expected 2"),
        ("VERSION: 2.0", "VERSION: found 2.0, expected 2"),
        ("MODEL: {WEIGHT: x}", "VERSION: found 1, expected 2"),
        ("SOLVER: {BASE_LR: .nan}", "SOLVER.BASE_LR: found nan, expected no NaN"),
        ("SOLVER: {BASE_LR: null}", "SOLVER.BASE_LR: found None, expected a value such as 0.001"),
        (
            "MODEL: {PIXEL_MEAN: [a]}",
            r"MODEL.PIXEL_MEAN: found \['a'\], expected a list of numbers",
        ),
        (
            "MODEL: {PIXEL_MEAN: [.nan]}",
            "MODEL.PIXEL_MEAN: found .nan., expected no NaN",
        ),
        ("DATASETS: {TRAIN: [5]}", r"DATASETS.TRAIN: found \(5,\), expected a list of texts"),
        ("DATASETS: {TEST: '(5,)'}", r"DATASETS.TEST: found \(5,\), expected a list of texts"),
        ("MODEL: '" + "(" * 5000 + "'", r"^MODEL: found '\(\(.{50,}, expected keys below it$"),
        ("SOLVER: 5", "^SOLVER: found 5, expected keys below it"),
        ("SOLVER: {STEPS: '" + "-" * 90000 + "1'}", "levels|Type mismatch"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, cfg, text, message):
    evil = "A: !!python/object/apply:os.system [touch {}]".format(tmp_path / "canary")
    files = {f"f{n}": f"_BASE_: f{n + 1}.yaml" for n in range(30)}
    file = write(tmp_path, a=text, b="_BASE_: a.yaml", c="A: {B: 1}", evil=evil, **files)
    with pytest.raises((OSError, ValueError), match=message) as error:
        cfg.merge_from_file(file)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("DATASETS.TRAIN", "(5,)", r"DATASETS.TRAIN: found \(5,\), expected a list of texts"),
        ("DATASETS.TRAIN", "(('a',),)", "DATASETS.TRAIN: .* expected a list without nested lists"),
        ("INPUT.CT.HU_WINDOW", "()", r"INPUT.CT.HU_WINDOW: found \(\), expected two numbers"),
        ("SOLVER.STEPS", "((1,), 2)", "SOLVER.STEPS: .* expected a list without nested lists"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16, 32]]", None),
        ("SOLVER.BASE_LR", "None", "SOLVER.BASE_LR: found None"),
        ("SOLVER.STEPS", "('a',)", "SOLVER.STEPS: found .'a',., expected a list of numbers"),
        (
            "TEST.VOLUME_CRITERIA",
            "(5,)",
            r"VOLUME_CRITERIA: found \(5,\), expected a list of texts",
        ),
        ("SOLVER.STEPS", "(True,)", "SOLVER.STEPS: found .True,., expected a list of numbers"),
        ("SOLVER.MAX_ITER.X", "1", "Non-existent key: SOLVER.MAX_ITER.X"),
        ("SOLVER", "1", "SOLVER: found '1', expected keys below it"),
        ("SOLVER", "{'MAX_ITER': 1}", "SOLVER: found .* expected keys below it"),
        ("SOLVER.STEPS", "(" * 5000, "levels|Type mismatch"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "None", None),
        ("SOLVER.WEIGHT_DECAY_BIAS", "0.5", None),
    ],
)
def test_values_of_the_command_line(cfg, key, value, message):
    if message is None:
        cfg.merge_from_list([key, value])
        return
    with pytest.raises((KeyError, ValueError), match=message):
        cfg.merge_from_list([key, value])


def test_keys_of_others_and_sections_alone_take_what_they_did(tmp_path, cfg):
    cfg.SOLVER.OWN_FACTORS, cfg.SOLVER.OWN = [0.5], LesionConfig({"NAMES": ()})
    cfg.merge_from_list(["SOLVER.OWN_FACTORS", "[1, 2]", "SOLVER.OWN.NAMES", "('a',)"])
    cfg.merge_from_file(write(tmp_path, a="SOLVER: {OWN: {NAMES: [b]}, STEPS: [1, 2]}"))
    cfg.SOLVER.merge_from_list(["BASE_LR", "0.5"])
    solver = cfg.SOLVER
    assert (solver.OWN_FACTORS, solver.OWN.NAMES) == ([1, 2], ("b",))
    assert (solver.STEPS, solver.BASE_LR) == ((1, 2), 0.5)


def test_nothing_is_loaded_unsafely_on_demand(tmp_path, cfg):
    file = write(tmp_path, a="SOLVER: {MAX_ITER: 5}")
    with pytest.raises(ValueError, match="configs cannot run code"):
        cfg.merge_from_file(file, allow_unsafe=True)
    with pytest.raises(ValueError, match="configs cannot run code"):
        LesionConfig.load_yaml_with_base(file, allow_unsafe=True)


@pytest.mark.parametrize(
    "name", ["quickstart/retina_unet_phantom", "3dce_attention/3dce_15_cs_phantom"]
)
def test_a_config_is_written_as_detectron2_writes_it(cfg, name):
    cfg.merge_from_file(str(Path(lesion_d2.__file__).parents[1] / "configs" / f"{name}.yaml"))
    cfg.MODEL.WEIGHTS = "a b: #" + 99 * " long"  # what is quoted and folded
    cfg.OUTPUT_DIR = "läsion\t1"
    assert cfg.dump() == CfgNode(cfg).dump()
    assert cfg.dump(sort_keys=False) == CfgNode(cfg).dump(sort_keys=False)


def test_one_value_of_the_pixels_is_repeated_for_every_slice(tmp_path, cfg):
    text = "MODEL: {PIXEL_MEAN: [2.0], PIXEL_STD: [1.0, 2.0, 3.0]}"
    cfg.merge_from_file(write(tmp_path, a="_BASE_: b.yaml\nINPUT: {CT: {NUM_SLICES: 5}}", b=text))
    assert cfg.MODEL.PIXEL_MEAN == [2.0] * 5 and cfg.MODEL.PIXEL_STD == [1.0, 2.0, 3.0]
    cfg = cfg.clone()
    cfg.merge_from_list(["INPUT.CT.NUM_SLICES", "7", "MODEL.PIXEL_STD", "[4.0]"])
    assert cfg.MODEL.PIXEL_MEAN == [2.0] * 7 and cfg.MODEL.PIXEL_STD == [4.0] * 7
    cfg.merge_from_list(["MODEL.PIXEL_MEAN", "[1.0, 2.0]", "INPUT.CT.NUM_SLICES", "1"])
    assert cfg.MODEL.PIXEL_MEAN == [1.0, 2.0] and cfg.MODEL.PIXEL_STD == [4.0]
    cfg.merge_from_list(["INPUT.CT.NUM_SLICES", "3"])
    cfg.merge_from_list(["INPUT.CT.NUM_SLICES", "5", "MODEL.PIXEL_STD", "[4.0, 4.0, 4.0]"])
    assert cfg.MODEL.PIXEL_STD == [4.0] * 3  # as it says, and refused by the mapper


def test_volumes_have_one_channel_and_no_number_of_slices_fills_memory(cfg):
    cfg.merge_from_list(["MODEL.PIXEL_MEAN", "[2.0]", "INPUT.CT.NUM_SLICES", "5"])
    cfg.merge_from_list(["INPUT.VOLUME.PATCH_SIZE", "(8, 16, 16)"])
    assert cfg.MODEL.PIXEL_MEAN == [2.0]
    cfg.merge_from_list(["INPUT.VOLUME.PATCH_SIZE", "(0, 0, 0)", "INPUT.CT.NUM_SLICES", "10000000"])
    assert cfg.MODEL.PIXEL_MEAN == [2.0]


def test_detectron2s_own_node_repeats_one_value_on_demand():
    cfg = get_cfg()
    add_lesion_config(cfg)
    cfg.MODEL.PIXEL_MEAN, cfg.INPUT.CT.NUM_SLICES = [2.0], 5
    assert broadcast_pixel_values(cfg) == {"PIXEL_MEAN": [2.0] * 5}
    assert cfg.MODEL.PIXEL_MEAN == [2.0] * 5 and len(cfg.MODEL.PIXEL_STD) == 3
