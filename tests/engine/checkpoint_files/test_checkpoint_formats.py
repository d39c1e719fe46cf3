"""What files of weights may hold, how damage is found, and how they are written."""

import os
import pickle
import zipfile

from lesion_d2.engine import LesionCheckpointer
from lesion_d2.engine.checkpoint_files import FORMATS, RefusedFile, read_file, write_file

import numpy as np
import pytest
import safetensors.torch
import torch
from full_disk import full_disk
from torch import nn

CHECKPOINT = {
    "model": {"conv.weight": torch.arange(12.0).reshape(3, 4).t(), "seen": torch.tensor(7)},
    "trainer": {
        "iteration": 3,
        "states": {0: {"exp_avg": torch.tensor([0.5, -1.0]), "step": torch.tensor(2.0)}},
        "empty": torch.zeros(0, 4),
        "kinds": [None, True, "text", float("inf"), (1, 2.5), {"a/b": torch.tensor([True])}],
    },
    "iteration": 3,
}


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_written_is_read_again(tmp_path, ending):
    path = str(tmp_path / f"a.{ending}")
    write_file(CHECKPOINT, path)
    assert _same(read_file(path), CHECKPOINT)
    assert os.listdir(tmp_path) == [f"a.{ending}"]


@pytest.mark.parametrize("ending", FORMATS)
def test_no_flipped_bit_changes_what_is_read(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    small = {"model": {"w": torch.tensor([1.0, 2.0])}, "iteration": 3}
    write_file(small, str(path))
    whole, num_told = path.read_bytes(), 0
    for position in range(0, len(whole), 17):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            found = read_file(str(path))
        except Exception:  # damaged files fail as their libraries like
            num_told += 1
        else:  # a bit of padding or a date
            assert _same(found, small), position
    assert num_told > 10


def test_torchs_files_without_checksums_and_old_ones_are_read(tmp_path):
    path = str(tmp_path / "a.pth")
    torch.save(CHECKPOINT, path, _use_new_zipfile_serialization=False)
    assert _same(read_file(path), CHECKPOINT)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CHECKPOINT["model"], path)
        write_file(CHECKPOINT, str(tmp_path / "b.pth"))
    finally:
        torch.serialization.set_crc32_options(True)
    assert _same(read_file(path), {"model": CHECKPOINT["model"]})
    with zipfile.ZipFile(tmp_path / "b.pth") as parts:  # ours have them always
        assert any(info.CRC for info in parts.infolist())


class _Runs:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("kind", ["a.pth", "old.pth", "a.pkl", "a.pyth"])
def test_no_file_runs_what_it_names(tmp_path, kind):
    path, canary = str(tmp_path / kind), tmp_path / "canary"
    content = {"model": {"w": torch.ones(1)}, "model_state": {}, "args": _Runs(canary)}
    if kind.endswith(".pkl"):
        with open(path, "wb") as file:
            pickle.dump({"args": content["args"]}, file)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old.pth")
    with pytest.raises(RefusedFile, match=r"found (posix|nt)\.mkdir in the pickle, expected "):
        read_file(path)
    with pytest.raises(ValueError, match=rf"{kind}: found (posix|nt)\.mkdir in the") as error:
        LesionCheckpointer(nn.Linear(1, 1)).load(path)
    assert "\n" not in str(error.value)
    assert not canary.exists()


@pytest.mark.parametrize(
    "value, name",
    [
        (np.ones(3), r"numpy\._?core\.multiarray\._reconstruct"),
        (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
    ],
)
def test_a_pth_that_needs_more_than_weights_is_refused_with_its_name(tmp_path, value, name):
    path = str(tmp_path / "a.pth")
    torch.save({"model": {"w": value}}, path)
    with pytest.raises(RefusedFile, match=f"^found {name} in the pickle, expected tensors, numb"):
        read_file(path)


def test_a_program_a_compressed_file_and_one_that_asks_for_too_much_are_refused(tmp_path):
    path = str(tmp_path / "a.pth")
    with zipfile.ZipFile(path, "w") as parts:  # as torch.jit.save writes it
        for name in ("data.pkl", "constants.pkl"):
            parts.writestr(f"a/{name}", pickle.dumps({}, 2))
        parts.writestr("a/version", "3")
    with pytest.raises(RefusedFile, match="found a TorchScript program, expected weights"):
        read_file(path)

    nested = ()
    for _ in range(40):
        nested = (nested, nested)
    pickled = pickle.dumps(nested, 2)  # a few hundred bytes; its hash takes 2^40 steps
    with zipfile.ZipFile(path, "w") as parts:
        parts.writestr("a/data.pkl", b"\x80\x02}" + pickled[2:-1] + b"K\x01s.")
        parts.writestr("a/version", "3")
    with pytest.raises(RefusedFile, match=r"found more than \d+ parts in a pickle of \d+ bytes"):
        read_file(path)

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("a/data/0", os.urandom(100) + bytes(50))
    with pytest.raises(ValueError, match="found a/data/0 compressed"):
        read_file(path)

    with zipfile.ZipFile(path, "w") as parts:
        parts.writestr("a/data/0", bytes(100))
        parts.getinfo("a/data/0").external_attr |= 0x10
    with pytest.raises(ValueError, match="found a/data/0 marked as a folder"):
        read_file(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as parts:
        for _ in range(2):
            parts.writestr("a/data/0", bytes(100))
    with pytest.raises(ValueError, match="parts with the same name or overlapping"):
        read_file(path)


def test_detectron2s_zoo_and_caffe2_are_read(tmp_path):
    path = tmp_path / "a.pkl"
    weights = {"stem.w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int64(3)}
    zoo = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(zoo))
    found = read_file(str(path))
    assert found.keys() == zoo.keys() and found["matching_heuristics"] is True
    np.testing.assert_array_equal(found["model"]["stem.w"], weights["stem.w"])
    blobs = {"conv1_w": weights["stem.w"], "conv1_w_momentum": weights["stem.w"]}
    for content in (blobs, {"blobs": blobs, "cfg": "text"}):
        path.write_bytes(pickle.dumps(content, 2))
        found = read_file(str(path))
        assert found["__author__"] == "Caffe2" and found["matching_heuristics"] is True
        assert list(found["model"]) == ["conv1_w"]
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="found a list, expected named weights"):
        read_file(str(path))


def test_safetensors_are_anyones(tmp_path):
    path = str(tmp_path / "a.safetensors")
    weights = {name: value.contiguous() for name, value in CHECKPOINT["model"].items()}
    safetensors.torch.save_file(weights, path)  # a stranger's
    assert _same(read_file(path), {"model": weights})
    write_file({"model": weights, "iteration": 3}, path)
    assert _same(safetensors.torch.load_file(path), weights)  # a stranger reads ours


def test_a_model_goes_through_safetensors(tmp_path):
    model, optimized = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Conv2d(3, 4, 3)
    optimizers = [torch.optim.Adam(m.parameters()) for m in (model, optimized)]
    model(torch.ones(1, 3, 3, 3)).sum().backward()
    optimizers[0].step()
    saver = LesionCheckpointer(
        model, str(tmp_path), file_format="safetensors", optimizer=optimizers[0]
    )
    saver.save("model_final", iteration=3)
    assert saver.get_checkpoint_file() == str(tmp_path / "model_final.safetensors")
    loader = LesionCheckpointer(optimized, str(tmp_path), optimizer=optimizers[1])
    assert loader.resume_or_load("", resume=True)["iteration"] == 3
    assert _same(dict(optimized.state_dict()), dict(model.state_dict()))
    assert _same(optimizers[1].state_dict(), optimizers[0].state_dict())


@pytest.mark.parametrize("ending", FORMATS)
def test_a_full_disk_names_the_file_and_leaves_no_half(tmp_path, ending):
    path = str(tmp_path / f"a.{ending}")
    message = rf"^\[Errno \d+\] [^\n]*: '.*/a\.{ending}'$"
    with full_disk(20_000), pytest.raises(OSError, match=message):
        write_file({"model": {"w": torch.ones(100_000)}}, path)
    assert os.listdir(tmp_path) == []
