"""Iterations that are given later replace epochs; together in one place they are an error."""

import json
import logging

from lesion_d2.config import get_lesion_config
from lesion_d2.config.epochs import EPOCH_KEYS

import pytest
from made_up_configs import write


@pytest.mark.parametrize("section, epochs, iterations, not_set", EPOCH_KEYS)
def test_iterations_of_a_command_line_replace_epochs(
    section, epochs, iterations, not_set, cfg, caplog
):
    is_list = isinstance(not_set, tuple)
    cfg[section][epochs] = (2.0,) if is_list else 2.0
    value = (10,) if is_list else 10
    cfg.merge_from_list([f"{section}.{iterations}", str(value)])
    assert cfg[section][iterations] == value and cfg[section][epochs] == not_set
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    found = f"{section}.{iterations}: '{value}' replaces {section}.{epochs} "
    assert record.getMessage().startswith(found)


def test_epochs_of_a_command_line_replace_iterations(cfg, caplog):
    cfg.merge_from_list(["SOLVER.MAX_ITER", "10"])
    cfg.merge_from_list(["SOLVER.MAX_EPOCHS", "2.0"])
    assert cfg.SOLVER.MAX_EPOCHS == 2.0 and not caplog.records


@pytest.mark.parametrize("text", ["{MAX_ITER: 10}", "{MAX_ITER: 10, MAX_EPOCHS: 0.0}"])
def test_iterations_of_a_file_replace_epochs_of_its_base(text, cfg, tmp_path):
    base = "SOLVER: {MAX_EPOCHS: 2.0, STEP_EPOCHS: [1.0]}"
    cfg.merge_from_file(write(tmp_path, a="_BASE_: [b.yaml, c.yaml]", b=base, c=f"SOLVER: {text}"))
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, solver.MAX_EPOCHS, solver.STEP_EPOCHS) == (10, 0, (1.0,))
    cfg.merge_from_file(write(tmp_path, a="_BASE_: c.yaml\nSOLVER: {MAX_EPOCHS: 3.0}"))
    assert cfg.SOLVER.MAX_EPOCHS == 3.0
    cfg.merge_from_file(write(tmp_path, a="SOLVER: {MAX_ITER: 20}"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.MAX_EPOCHS) == (20, 0)


def test_both_in_one_place_are_an_error(cfg, tmp_path):
    message = "SOLVER.MAX_ITER: found {} and SOLVER.MAX_EPOCHS {}, expected only one of them"
    file = write(tmp_path, a="SOLVER: {MAX_EPOCHS: 2.0, MAX_ITER: 10}")
    with pytest.raises(ValueError, match=f"^{file}: {message.format(10, 2.0)}"):
        cfg.merge_from_file(file)
    with pytest.raises(ValueError, match="^" + message.format("'10'", "'2'")):
        cfg.merge_from_list(["SOLVER.MAX_ITER", "10", "SOLVER.MAX_EPOCHS", "2"])
    # 0 and () switch off what the other one has.
    cfg.merge_from_list(["TEST.EVAL_PERIOD", "0", "TEST.EVAL_EPOCHS", "1.0"])
    cfg.merge_from_list(["SOLVER.STEPS", "()", "SOLVER.STEP_EPOCHS", "(1.0,)"])
    assert cfg.TEST.EVAL_EPOCHS == 1.0 and cfg.SOLVER.STEP_EPOCHS == (1.0,)


def test_a_written_config_has_both(cfg, tmp_path):
    cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.MAX_ITER = 2.0, 123
    file = write(tmp_path, a=cfg.dump())
    read = get_lesion_config()
    read.merge_from_file(file)
    assert json.dumps(read) == json.dumps(cfg)  # tuples as lists
    read.merge_from_list(["SOLVER.MAX_ITER", "10"])
    assert (read.SOLVER.MAX_ITER, read.SOLVER.MAX_EPOCHS) == (10, 0)
