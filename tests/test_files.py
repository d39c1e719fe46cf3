import errno
import fcntl
import os
import stat

from lesion_d2.files import locked, one_line, read_json, release_lock, take_lock, written_whole

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


def test_two_writers_of_a_file_have_a_path_each_and_one_is_there_whole(tmp_path):
    file = tmp_path / "a"
    (tmp_path / ".a.part").write_text("of a killed writer")
    with written_whole(file) as first, written_whole(file) as second:
        assert first != second and {first.read_text(), second.read_text()} == {""}
        first.write_text("first")
        second.write_text("second, longer")
        assert not file.exists()
    assert file.read_text() == "first"  # the outer block ended last
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    file = tmp_path / "a"
    file.write_text("old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write() on an open file raises it
    with pytest.raises(OSError, match=r"No space left on device: '.*/a'$"), written_whole(file):
        raise full
    assert file.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_files_are_written_where_there_are_no_locks(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with written_whole(tmp_path / "a") as first, written_whole(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"


def test_a_lock_ends_with_its_process_though_one_forked_from_it_lives_on(tmp_path):
    file = tmp_path / "lock"
    lock = take_lock(file)
    (done, end), (ready, begun) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.write(begun, b".")
        os.read(done, 1)  # until the parent closes its end
        os._exit(0)
    os.read(ready, 1)
    release_lock(lock)
    with locked(file):
        os.close(end)
    os.waitpid(child, 0)
