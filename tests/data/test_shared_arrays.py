import os
from pathlib import Path

from lesion_d2.data.shared_arrays import release, shared_array, shared_in, shares_arrays

import numpy as np
import pytest


def test_an_array_is_made_once_for_an_owner_and_a_kind(tmp_path: Path):
    made = []

    def make(allocate):
        made.append(len(made))
        array = allocate((3, 4), np.int16)
        array[:] = made[-1]
        return array

    with shared_in(tmp_path):
        assert shares_arrays()
        first, second = (shared_array("a", "b", make) for _ in range(2))
        assert first.dtype == np.int16 and (first == second).all() and made == [0]
        assert (shared_array("a", "c", make) == 1).all() and (
            shared_array("c", "b", make) == 2
        ).all()
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 1
        release(tmp_path, "a")
        assert len(list(tmp_path.glob("*.npy"))) == 1 and (first == 0).all()
        assert (shared_array("a", "b", make) == 3).all()
    assert not shares_arrays()
    shared_array("a", "b", make)[0] = 7  # the caller's own
    assert made == [0, 1, 2, 3, 4]


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def damaged(allocate):
        allocate((2,), np.int16)
        raise ValueError("damaged")

    with shared_in(tmp_path), pytest.raises(ValueError, match="damaged"):
        shared_array("a", "b", damaged)
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob("*.part"))
    assert not shares_arrays()

    def fallocate(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)
    with shared_in(tmp_path), pytest.raises(OSError, match=r"No space left on device.*npy"):
        shared_array("a", "b", lambda allocate: allocate((2,), np.int16))
    assert not shares_arrays()
