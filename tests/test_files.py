import errno
import fcntl
import os
import stat

from lesion_d2.files import locked, one_line, read_json, written_whole

import pytest


@pytest.mark.parametrize("fails", ["open", "fsync"])
@pytest.mark.parametrize("code", ["EINVAL", "ENOTSUP", "EACCES", "EPERM", "ENOSYS"])
def test_a_folder_that_cannot_be_synced_holds_what_was_written(tmp_path, monkeypatch, fails, code):
    number = getattr(errno, code)
    _let_folders_fail(monkeypatch, fails, OSError(number, os.strerror(number)))
    with written_whole(tmp_path / "a") as partial:
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "whole"


def test_a_disk_that_fails_is_told_of(tmp_path, monkeypatch):
    _let_folders_fail(monkeypatch, "fsync", OSError(errno.EIO, os.strerror(errno.EIO)))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), written_whole(tmp_path / "a") as f:
        f.write_text("whole")


def _let_folders_fail(monkeypatch, name: str, error: OSError) -> None:
    function, status = getattr(os, name), os.stat

    def fail(target, *args):
        if stat.S_ISDIR(status(target).st_mode):
            raise error
        return function(target, *args)

    monkeypatch.setattr(os, name, fail)


def test_json_is_read_or_told_of_in_one_line(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"ä": [1, null]}', encoding="utf-8")
    assert read_json(file, "numbers") == {"ä": [1, None]}
    for data in (b"", b"{", b"\xff\xfe", b"\x00", b"[" * 100_000):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.json: found no readable JSON \(.+\)$") as error:
            read_json(file, "numbers")
        assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.json: no such file, expected numbers$"):
        read_json(file, "numbers")
    with pytest.raises(IsADirectoryError, match=r": found a folder, expected numbers$"):
        read_json(tmp_path, "numbers")


def test_one_line():
    assert one_line(ValueError("a\n  b\tc ")) == "a b c"


def test_a_lock_is_one_holders_and_ends_with_its_block(tmp_path):
    file = tmp_path / "lock"
    refused = pytest.raises(BlockingIOError, match=r"lock: another process is at work here$")
    with locked(file), refused, locked(file):
        pytest.fail("two hold it")
    with locked(file):
        file.unlink()


def test_a_lock_that_its_holder_removed_is_nobody_elses(tmp_path, monkeypatch):
    file = tmp_path / "lock"
    take = fcntl.flock

    def removed_while_it_is_taken(*args):
        file.unlink()
        take(*args)

    monkeypatch.setattr(fcntl, "flock", removed_while_it_is_taken)
    with pytest.raises(BlockingIOError, match="another process"), locked(file):
        pytest.fail("another process may hold the next file of that name")
