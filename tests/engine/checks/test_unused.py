from fnmatch import fnmatch

import lesion_d2
from lesion_d2.engine.checks.unused import UNUSED_KEYS, check_unused
from lesion_d2.engine.input_errors import InputError

import pytest
from detectron2.config import CfgNode, get_cfg
from tiny_run import tiny_args

from train_net import main

_CHANGES = [
    ("INPUT.CROP.ENABLED", True, "INPUT.PATCH"),
    ("INPUT.CROP.SIZE", [0.5, 0.5], "INPUT.PATCH"),
    ("INPUT.MIN_SIZE_TRAIN", (512,), "INPUT.CT"),
    ("INPUT.MAX_SIZE_TEST", 512, "INPUT.CT"),
    ("INPUT.RANDOM_FLIP", "vertical", "INPUT.AUG"),
    ("INPUT.FORMAT", "RGB", "NUM_SLICES"),
    ("TEST.AUG.ENABLED", True, "TEST.ENSEMBLE"),
    ("MODEL.LOAD_PROPOSALS", True, "proposals"),
    ("MODEL.KEYPOINT_ON", True, "keypoints"),
    ("DATALOADER.REPEAT_THRESHOLD", 0.3, "EMPTY_IMAGE_RATIO"),
]


def _config():
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    return cfg


@pytest.mark.parametrize(("key", "value", "instead"), _CHANGES)
def test_a_key_that_does_nothing_is_refused_where_it_is_changed(key, value, instead):
    cfg = _config()
    check_unused(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=rf"^{key}: found .*, expected .*nothing here.*{instead}"):
        check_unused(cfg)


def test_it_is_refused_before_anything_is_written(tmp_path, tiny_phantom):
    with pytest.raises(InputError, match=r"INPUT\.CROP\.ENABLED: found True, expected False"):
        main(tiny_args(tmp_path / "run", INPUT__CROP__ENABLED=True))
    assert not (tmp_path / "run").exists()


def test_nothing_of_a_run_reads_these_keys(tmp_path, tiny_phantom, monkeypatch):
    """Every key that a training with an evaluation reads is recorded."""
    names, read = {}, set()

    def note(node, prefix):
        names[frozenset(node)] = prefix
        for name, value in node.items():
            if isinstance(value, CfgNode):
                note(value, f"{prefix}{name}.")

    note(_config(), "")
    base = next(kind for kind in CfgNode.__mro__ if "__getattr__" in vars(kind))
    get = base.__getattr__

    def record(node, name):
        if name in node and frozenset(node) in names:
            read.add(names[frozenset(node)] + name)
        return get(node, name)

    monkeypatch.setattr("lesion_d2.engine.checks.inputs.check_unused", lambda cfg: None)
    monkeypatch.setattr(base, "__getattr__", record)
    main(tiny_args(tmp_path / "run", SOLVER__MAX_ITER=2, TEST__EVAL_PERIOD=2))
    assert {"INPUT.CT", "SOLVER.MAX_ITER", "TEST.DETECTIONS_PER_IMAGE"} <= read
    # The models tell their pictures' color order by INPUT.FORMAT, and look for keypoints.
    unused = {key for patterns in UNUSED_KEYS for key in patterns.split()}
    unused -= {"INPUT.FORMAT", "MODEL.KEYPOINT_ON"}
    assert not {key for key in read if any(fnmatch(key, pattern) for pattern in unused)}
