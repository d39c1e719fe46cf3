"""Old names of keys are accepted in files and on command lines, with a warning of each."""

import hashlib
import json

from lesion_d2 import add_lesion_config
from lesion_d2.config import LesionConfig, get_lesion_config
from lesion_d2.config.old_keys import (
    OLD_KEYS,
    old_keys_in,
    rename_in_file,
    renamed_folder,
    with_old_keys,
)
from lesion_d2.engine.checks.unused import check_unused
from lesion_d2.engine.input_errors import InputError, value_of
from lesion_d2.tools.common.trainings import hash_settings

import pytest
from detectron2.config import get_cfg
from made_up_configs import write


def nested(**values):
    """Sections of keys; ``__`` stands for the dot."""
    content = {}
    for key, value in values.items():
        *sections, name = key.split("__")
        section = content
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = value
    return content


def other_value(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    return f"other {value}" if isinstance(value, str) else value + 1


def told(caplog):
    """The warnings of this project; Detectron2 has one of files without VERSION."""
    return [r.getMessage() for r in caplog.records if r.name == "lesion_d2.config.old_keys"]


@pytest.mark.parametrize("old, new", OLD_KEYS.items())
def test_an_old_key_sets_the_new_one_with_a_warning(old, new, cfg, tmp_path, caplog):
    value = other_value(value_of(cfg, new))
    file = write(tmp_path, a=nested(**{old.replace(".", "__"): value}))
    cfg.merge_from_file(file)
    assert value_of(cfg, new) == value and old_keys_in(cfg) == []
    by_list = get_lesion_config()
    by_list.merge_from_list([old, str(value)])
    assert value_of(by_list, new) == value
    in_file, in_list = told(caplog)
    assert in_file.startswith(f"{file}: {old}: found the old name of a key, expected {new}; ")
    assert in_list.startswith(f"{old}: found the old name of a key, expected {new}; ")


@pytest.mark.parametrize("old, new", OLD_KEYS.items())
def test_a_key_under_both_names_is_an_error(old, new, cfg, tmp_path):
    value = value_of(cfg, new)
    message = f"{old}: found together with its new name {new}, expected only {new}"
    names = {key.replace(".", "__"): value for key in (old, new)}
    with pytest.raises(ValueError, match=f"a.yaml: {message}"):
        cfg.merge_from_file(write(tmp_path, a=nested(**names)))
    with pytest.raises(ValueError, match=f"^{message}"):
        cfg.merge_from_list([new, str(value), old, str(value)])


def test_the_new_name_of_a_later_source_counts(cfg, tmp_path):
    base, own = nested(TEST__KEEP_BEST=3), nested(TEST__NUM_BEST_CHECKPOINTS=4)
    cfg.merge_from_file(write(tmp_path, a={"_BASE_": "b.yaml", **own}, b=base))
    assert cfg.TEST.NUM_BEST_CHECKPOINTS == 4
    cfg.merge_from_file(write(tmp_path, a={"_BASE_": "b.yaml", **base}, b=own))
    assert cfg.TEST.NUM_BEST_CHECKPOINTS == 3
    cfg.merge_from_list(["TEST.NUM_BEST_CHECKPOINTS", "5"])
    assert cfg.TEST.NUM_BEST_CHECKPOINTS == 5


def test_a_config_written_before_is_read(cfg, tmp_path, caplog):
    cfg.INPUT.BOX_MARGIN, cfg.TEST.INCLUSIVE_BOXES = 2.5, True
    written = with_old_keys(json.loads(json.dumps(cfg)))
    assert old_keys_in(written) == list(OLD_KEYS) and "BOX_MARGIN" not in written["INPUT"]
    read = get_lesion_config()
    read.merge_from_file(write(tmp_path, a=written))
    assert json.dumps(read) == json.dumps(cfg)  # tuples as lists
    (line,) = told(caplog)
    assert (
        f"a.yaml: {len(OLD_KEYS)} keys, such as {next(iter(OLD_KEYS))}: found the old name" in line
    )


def test_a_file_is_as_before_where_it_has_new_names(tmp_path):
    content = nested(MODEL__SEG_HEAD__CLASS_AGNOSTIC=True, TEST__EVAL_PERIOD=2)
    rename_in_file("a.yaml", content)
    assert content == nested(MODEL__SEG_HEAD__CLASS_AGNOSTIC=True, TEST__EVAL_PERIOD=2)
    with pytest.raises(ValueError, match=r"MODEL.SEG_HEAD: found 5, expected keys below it"):
        bad = {"MODEL": {"SEG_HEAD": 5, "RETINA_UNET": {"SEG_LOSS": "focal"}}}
        LesionConfig.load_yaml_with_base(write(tmp_path, a=bad))


def test_detectron2s_own_node_tells_the_new_name(tmp_path):
    cfg = get_cfg()
    add_lesion_config(cfg)
    add_lesion_config(cfg)  # again, as two projects may
    with pytest.raises(KeyError, match=r"TEST.KEEP_BEST was renamed to TEST.NUM_BEST_CHECKPOINTS"):
        cfg.merge_from_list(["TEST.KEEP_BEST", "2"])
    with pytest.raises(KeyError, match=r"TEST.KEEP_BEST was renamed to TEST.NUM_BEST_CHECKPOINTS"):
        cfg.merge_from_file(write(tmp_path, a=nested(TEST__KEEP_BEST=2)))


def test_code_that_assigns_an_old_key_stops_a_run(cfg):
    check_unused(cfg)
    cfg.TEST.KEEP_BEST = 2
    message = "TEST.KEEP_BEST: found the old name of a key, expected TEST.NUM_BEST_CHECKPOINTS"
    with pytest.raises(InputError, match=message):
        check_unused(cfg)


def test_settings_of_runs_are_the_same_under_both_names(tmp_path):
    """So that a grid that was begun before goes on."""
    before = nested(
        MODEL__RETINA_UNET__SEG_LOSS="focal", MODEL__PIXEL_MEAN=[1.5] * 5, INPUT__CT__NUM_SLICES=5
    )
    own = nested(
        MODEL__SEG_HEAD__LOSS_TYPE="focal", MODEL__PIXEL_MEAN=[1.5], INPUT__CT__NUM_SLICES=5
    )
    expected = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()
    assert hash_settings(write(tmp_path, a=own)) == expected
    assert hash_settings(write(tmp_path, a=before)) == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("configs/tao/parts/a.yaml", " (configs/tao is now configs/3dce_attention)"),
        ("configs/mine/../bai/a.yaml", " (configs/bai is now configs/mean_teacher)"),
        ("configs/mean_teacher/a.yaml", ""),
        ("/home/tao/configs/a.yaml", ""),  # a user's name
        ("https://host/configs/a.yaml", ""),
    ],
)
def test_only_renamed_folders_of_configs_are_told_of(file, expected):
    assert renamed_folder(file) == expected


def test_a_path_within_the_folder_of_configs_is_told_of_too(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path / "configs")
    assert renamed_folder("zlocha/a.yaml") == " (configs/zlocha is now configs/improved_retinanet)"
