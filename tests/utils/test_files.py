import errno
import fcntl
import itertools
import math
import os
import stat
from pathlib import Path

from lesion_d2.utils import files
from lesion_d2.utils.files import (
    atomic_folder,
    atomic_write,
    locked,
    one_line,
    parse_json,
    read_json,
    recover_folder,
    release_lock,
    take_lock,
    without_nan,
    write_json,
)

import pytest


@pytest.mark.parametrize("fails", ["open", "fsync"])
@pytest.mark.parametrize("code", ["EINVAL", "ENOTSUP", "EACCES", "EPERM", "ENOSYS"])
def test_a_folder_that_cannot_be_synced_holds_what_was_written(tmp_path, monkeypatch, fails, code):
    number = getattr(errno, code)
    _let_folders_fail(monkeypatch, fails, OSError(number, os.strerror(number)))
    with atomic_write(tmp_path / "a") as partial:
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "whole"


def test_a_disk_that_fails_is_told_of(tmp_path, monkeypatch):
    _let_folders_fail(monkeypatch, "fsync", OSError(errno.EIO, os.strerror(errno.EIO)))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), atomic_write(tmp_path / "a") as f:
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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": NaN}', "invalid number NaN"),
        (b"[-Infinity]", "invalid number -Infinity"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key 'c' in an object"),
        (b'{"' + b"k" * 5000 + b'": 1, "' + b"k" * 5000 + b'": 2}', "duplicate key 'kkk"),
        pytest.param(
            b"{%s}" % b",".join(b'"%d": 0' % (i % 20_000) for i in range(20_001)),
            "duplicate key '0'",
            id="the last of many keys",
        ),
        (b"1" * 5000, "Exceeds the limit"),
        (b'{"a":' * 10_000, "recursion"),
        (b'"\xe9"', "can't decode byte 0xe9"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b"\xef\xbb\xbf", "Expecting value"),
        (b"\xfe\xff\xd8", "decode"),
    ],
)
def test_json_that_is_none_is_told_of_in_one_line(data, message):
    with pytest.raises(ValueError, match=rf"^a, line 3: found no readable JSON \(.*{message}") as e:
        parse_json(data, "a, line 3")
    assert len(str(e.value)) < 300 and "\n" not in str(e.value)


def test_json_of_other_programs(tmp_path):
    assert parse_json(b'\xef\xbb\xbf{"a": [1e5, "\\ud83d\\ude00"]}', "a") == {
        "a": [1e5, "\U0001f600"]
    }
    assert parse_json('{"ä": 1}'.encode("utf-16"), "a") == {"ä": 1}
    assert math.isnan(parse_json(b"[NaN]", "a", allow_nan=True)[0])
    assert parse_json(b'[{"a": 1}, {"a": 2}]', "a") == [{"a": 1}, {"a": 2}]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    file, content = tmp_path / "a.json", {"b": [1, math.nan], "c": {"d": math.nan}}
    write_json(file, {"old": True}, indent=1)
    assert file.read_text() == '{\n "old": true\n}\n'
    with pytest.raises(
        ValueError, match=r"a\.json: found a value that JSON cannot represent \(Out of range"
    ):
        write_json(file, content)
    with pytest.raises(ValueError, match="of type set is not"):
        write_json(file, {"b": set()}, allow_nan=True)
    assert read_json(file, "") == {"old": True} and os.listdir(tmp_path) == ["a.json"]
    write_json(file, content, allow_nan=True)
    assert math.isnan(read_json(file, "", allow_nan=True)["b"][1])
    assert without_nan({"a": (math.nan, 1)}) == {"a": [None, 1]}  # JSON has lists for tuples
    write_json(file, without_nan(content))
    assert read_json(file, "") == {"b": [1, None], "c": {"d": None}}


def test_white_space_of_an_error_becomes_one_line():
    assert one_line(ValueError("a\n  b\tc ")) == "a b c"


def test_a_lock_is_one_holders_and_ends_with_its_block(tmp_path):
    file = tmp_path / "lock"
    refused = pytest.raises(BlockingIOError, match=r"lock: another process has locked this file$")
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
    with atomic_write(file) as first, atomic_write(file) as second:
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
    with pytest.raises(OSError, match=r"No space left on device: '.*/a'$"), atomic_write(file):
        raise full
    assert file.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_files_are_written_where_there_are_no_locks(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    with locked(tmp_path / "lock"), atomic_folder(tmp_path / "b") as folder:
        (folder / "c").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "lock"]


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


# --- folders --------------------------------------------------------------------------------------

OLD, NEW = {"a": "old", "b/c": "old"}, {"a": "new", "b/c": "new", "b/d": "new"}


def _fill(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


class _Killed(BaseException):
    pass


def _replace_and_die(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Replace a folder, dead from the numberth operation on the disk on; whether it came to that.

    The dead remove nothing behind them, and have no locks.
    """
    calls = itertools.count()

    def dying(function):
        def call(*args, **options):
            if next(calls) >= number:
                raise _Killed
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            with atomic_folder(folder) as partial:
                _fill(partial, NEW)
        except _Killed:
            files._forget_locks()
            return True
    return False


@pytest.mark.parametrize("before", [OLD, {}])
def test_a_folder_whose_replacement_was_killed_is_never_a_part(tmp_path, monkeypatch, before):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for operation in range(100):
        folder = tmp_path / str(operation) / "set"
        _fill(folder, before)
        died = _replace_and_die(folder, operation, monkeypatch)
        assert _content(folder) in (before, NEW, {})
        if operation % 2:
            recover_folder(folder)
            assert _content(folder) in ((before, NEW) if died else (NEW,))
            assert [path.name for path in folder.parent.iterdir()] == ["set"] * folder.exists()
        with atomic_folder(folder) as partial:
            assert not list(partial.iterdir())
            _fill(partial, {"e": "newest"})
        assert _content(folder) == {"e": "newest"}
        assert [path.name for path in folder.parent.iterdir()] == ["set"]
        if not died:
            break
    assert operation > (12 if before else 5)


def test_a_folder_stays_as_it_was_where_its_block_does_not_end_well(tmp_path):
    _fill(tmp_path / "set", OLD)
    with pytest.raises(KeyError), atomic_folder(tmp_path / "set") as partial:
        _fill(partial, NEW)
        raise KeyError
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    named = pytest.raises(OSError, match=r"No space left on device: '.*/set'$")
    with named, atomic_folder(tmp_path / "set"):
        raise full
    assert _content(tmp_path / "set") == OLD and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_one_writes_is_refused_to_others(tmp_path):
    folder = tmp_path / "new" / "set"
    refused = pytest.raises(
        BlockingIOError, match=r"new/set: another process is using this folder$"
    )
    with atomic_folder(folder) as partial:
        _fill(partial, OLD)
        with refused, atomic_folder(folder):
            pytest.fail("two write it")
        recover_folder(folder)  # which is none of this one's
    assert _content(folder) == OLD and [path.name for path in folder.parent.iterdir()] == ["set"]


def test_a_folder_behind_a_link_is_replaced_where_it_lies(tmp_path):
    _fill(tmp_path / "disk" / "set", OLD)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "set")
    with atomic_folder(tmp_path / "link") as partial:
        _fill(partial, NEW)
    assert _content(tmp_path / "disk" / "set") == NEW and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *("a", "b", "c", "d", "disk", "link", "set"),
    ]
