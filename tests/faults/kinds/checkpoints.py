"""Checkpoints of the project's own and of strangers: ``.pth`` and ``.pkl``."""

import io
import pickle
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from lesion_d2.engine.checkpoint_files.checkpointer import (
    LesionCheckpointer,
    check_weights,
    load_trained,
)

import numpy as np
import torch
from torch import nn

from ..case import Case, Kind
from ..damage import damage, flip_bits
from ..sandbox import CANARY
from .pickles import CALLS

_NAME = "model_0000001"


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(first=nn.Linear(4, 8), second=nn.Linear(8, 2)))


@cache
def _files() -> dict[str, bytes]:
    """What the project writes for one checkpoint."""
    with TemporaryDirectory() as folder:
        LesionCheckpointer(_model(), folder).save(_NAME, iteration=1)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _state(model: nn.Module) -> list[np.ndarray]:
    return [value.numpy().copy() for value in model.state_dict().values()]


def _value() -> list[np.ndarray]:
    return _state(_model())


def _read(file: Path) -> list[np.ndarray]:
    model = _model(seed=1)
    load_trained(LesionCheckpointer(model), str(file))
    return _state(model)


def read(folder: Path) -> list[np.ndarray]:
    """The weights, as for an evaluation."""
    return _read(folder / f"{_NAME}.pth")


def read_to_train(folder: Path) -> list[np.ndarray]:
    """The weights, as for a training."""
    model = _model(seed=1)
    check_weights(str(folder / f"{_NAME}.pth"), model)
    LesionCheckpointer(model).load(str(folder / f"{_NAME}.pth"), checkpointables=[])
    return _state(model)


def read_pkl(folder: Path) -> list[np.ndarray]:
    """Weights as Detectron2's model zoo has them."""
    return _read(folder / "model.pkl")


def resume(folder: Path) -> list[np.ndarray]:
    """What ``--resume`` goes on with."""
    model = _model(seed=1)
    checkpointer = LesionCheckpointer(model, str(folder))
    checkpointer.resume_or_load("", resume=True)
    return _state(model)


def _pth(name: str, data: bytes, reader=read, **options) -> Case:
    return Case(name, {**_files(), f"{_NAME}.pth": data}, reader, **options)


def _alone(name: str, content: object, **options) -> Case:
    """A stranger's file."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return Case(name, {f"{_NAME}.pth": stream.getvalue()}, read, **options)


def _pkl(name: str, content: object, **options) -> Case:
    data = content if isinstance(content, bytes) else pickle.dumps(content, 2)
    return Case(f"pkl: {name}", {"model.pkl": data}, read_pkl, **options)


def _arrays(seed: int = 0) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in _model(seed).state_dict().items()}


def _with_pickle(data: bytes) -> bytes:
    """A file of torch's whose pickle is another one."""
    source, target = io.BytesIO(_files()[f"{_NAME}.pth"]), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            is_pickle = info.filename.endswith("data.pkl")
            new.writestr(info.filename, data if is_pickle else old.read(info))
    return target.getvalue()


class _Foreign:
    """Something of a class that no checkpoint has."""


def known() -> list[Case]:
    """What was found."""
    good, value = _files()[f"{_NAME}.pth"], _value()
    weights = _model().state_dict()
    cases = [
        _pth("as it should be", good, expected=value),
        _pth("as it should be, to train", good, read_to_train, expected=value),
        Case("resumed", _files(), resume, expected=value),
        _alone("a stranger's", {"model": weights}, expected=value),
        _alone("of weights alone", dict(weights), expected=value, may_refuse=True),
        _pkl("as in the zoo", {"model": _arrays(), "__author__": "x"}, expected=value),
        _pkl("of weights alone", _arrays(), expected=value, may_refuse=True),
        _pth("empty", b""),
        _pth("half", good[: len(good) // 2]),
        _pth("all but a byte", good[:-1]),
        _pth("zero bytes", bytes(len(good))),
        _pth("text", b"weights\n"),
        _pkl("empty", b""),
        _pkl("text", b"weights\n"),
        _pkl(
            "of one foreign key", {"model": {"foreign": np.zeros(3)}, "matching_heuristics": True}
        ),
        _pkl("a number", 5),
        _pkl("numbers as names", {"model": {5: np.zeros(3)}}),
        _pkl("lists as weights", {"model": {"first.weight": [1, 2]}}),
        _alone("of one foreign key", {"model": {"foreign": torch.zeros(3)}}),
        _alone("of a class", {"model": weights, "more": _Foreign()}),
        _alone("a list", [1, 2]),
        _alone("no weights", {"model": {}}),
        _alone("text as weights", {"model": {"first.weight": "x"}}),
        _alone("weights that lack", {"model": {"first.weight": weights["first.weight"]}}),
        _alone("NaN", {"model": {**weights, "first.weight": torch.full((8, 4), float("nan"))}}),
        _alone("infinity", {"model": {**weights, "first.bias": torch.full((8,), float("inf"))}}),
        _alone("another shape", {"model": {**weights, "first.weight": torch.zeros(4, 8)}}),
        _alone(
            "integers",
            {"model": {**weights, "first.bias": torch.zeros(8, dtype=torch.long)}},
            expected=None,
            may_refuse=True,
        ),
        Case("a folder", {f"{_NAME}.pth/x": b""}, read),
    ]
    for call in CALLS:
        body = b"\x80\x02" + call.opcodes() + b"."
        cases.append(_pkl(f"calls {call.function}", body))
        cases.append(Case(f"calls {call.function}", {f"{_NAME}.pth": _with_pickle(body)}, read))
    names = (
        "/etc/passwd",
        "../outside/x.pth",
        "outside/x.pth",
        "",
        "absent.pth",
        "x\x00",
        "é.pkl",
        "e.pkl\n",
    )
    evil = b"\x80\x02" + CALLS[0].opcodes() + b"."
    for name in names:
        files = {**_files(), "last_checkpoint": name.encode(), "outside/x.pth": evil}
        cases.append(Case(f"last_checkpoint {name!r}", files, resume))
    absolute = {**_files(), "last_checkpoint": b"e.pkl", "e.pkl": evil}
    cases.append(Case("last_checkpoint e.pkl that runs", absolute, resume))
    assert CANARY in str(CALLS[0].args)
    return cases


def draw(rng: np.random.Generator) -> Case:
    """Damaged bytes of the project's own checkpoint, or of a stranger's pickle."""
    if rng.random() < 0.8:
        good = _files()[f"{_NAME}.pth"]
        data, name = flip_bits(rng, good) if rng.random() < 0.6 else damage(rng, good)
        reader = (read, read_to_train)[int(rng.integers(2))]
        return _pth(name, data, reader, expected=_value(), may_refuse=True)
    data = pickle.dumps({"model": {"foreign": np.zeros(3)}}, 2)  # whatever it says, it fits nothing
    data, name = damage(rng, data)
    return _pkl(name, data)


KIND = Kind("checkpoint", known, draw)
