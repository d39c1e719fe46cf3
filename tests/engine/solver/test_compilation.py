"""What SOLVER.COMPILE compiles; tests/gpu has what comes out of it."""

import shutil
import sysconfig

from lesion_d2.engine.solver import compilation
from lesion_d2.engine.solver.compilation import check_compiler, compile_parts, missing_compiler
from lesion_d2.modeling import MeanTeacher
from lesion_d2.utils.errors import InputError

import pytest
import torch
from detectron2.modeling import build_model
from tiny_run import tiny_config


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, ["UNetFPN", "RetinaNetHead"]),
        ({"MODEL__BACKBONE__NAME": "build_slice_images_backbone"}, ["VGG", "RetinaNetHead"]),
    ],
)
def test_what_is_compiled(monkeypatch, changes, expected):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    decoders = []
    monkeypatch.setattr(torch, "compile", lambda function: decoders.append(function) or function)
    if changes:
        changes |= {
            "MODEL__META_ARCHITECTURE": "LesionRetinaNet",
            "MODEL__VGG__WIDTH": 4,
            "MODEL__RPN__IN_FEATURES": ["c4"],
            "MODEL__RETINANET__IN_FEATURES": ["c4"],
            "MODEL__ANCHOR_GENERATOR__SIZES": [[16.0]],
        }
    student = build_model(tiny_config(**changes))
    teacher = MeanTeacher(student)
    names = list(teacher.state_dict())
    compile_parts(teacher)

    assert list(teacher.state_dict()) == names
    assert [type(part).__name__ for part in compiled] == 2 * expected
    assert len(decoders) == (0 if changes else 2)  # a U-FPN's, beside its forward

    inside = {id(module) for module in teacher.teacher.modules()}
    assert [id(part) in inside for part in compiled] == [False] * 2 + [True] * 2


def test_a_machine_without_a_compiler_is_told_in_one_line(monkeypatch):
    cfg = tiny_config(SOLVER__COMPILE=True)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError) as error:
        check_compiler(cfg)
    assert str(error.value) == (
        "SOLVER.COMPILE: found True, but no compiler (CXX, g++ or clang++); expected it, or False"
    )
    cfg.SOLVER.COMPILE = False
    check_compiler(cfg)


def test_what_a_compiler_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "my-cc" else None)
    monkeypatch.setenv("CC", "another-cc")
    assert missing_compiler("cuda").startswith("compiler (CC, gcc")
    monkeypatch.setenv("CC", "my-cc")
    assert missing_compiler("cuda") == f"{tmp_path}/Python.h (package python3-dev)"
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    assert missing_compiler("cuda") == "package triton"
    monkeypatch.setattr(compilation, "find_spec", lambda name: name)
    assert missing_compiler("cuda") == ""
