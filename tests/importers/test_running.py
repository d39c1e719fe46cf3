import os
import shutil
import signal
from functools import partial
from pathlib import Path

from lesion_d2.data.volume_set.form import read_volume_set
from lesion_d2.data.volume_set.voxels import read_voxels
from lesion_d2.importers import Case, ImportedVolume, Listing
from lesion_d2.importers import journal as journal_module
from lesion_d2.importers.running import run_import, working_folder
from lesion_d2.utils.files import locked
from lesion_d2.utils.shards import Shard

import made_up_format
import numpy as np
import pytest
from made_up_format import list_npz, write_cases
from round_trip import check_trains_and_evaluates
from warm_processes import METHOD, run_script, start_processes

run = partial(run_import, format="npz", workers=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_cases(tmp_path / "source")
    return tmp_path / "source"


def _files(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def test_all_of_a_source_is_in_the_data_set(source, tmp_path):
    summary = run(list_npz(source, options={"level": 2}), tmp_path / "mine")
    assert summary.written and summary.num_cases == 4 and not summary.damaged
    assert [line.partition(": ")[2] for line in summary.left_out] == ["no lesion", "no lesion"]
    found = read_volume_set(tmp_path / "mine")
    assert found == summary.volume_set
    assert found.source == {"format": "npz", "level": 2}
    assert [volume.name for volume in found.volumes] == [f"case_{i}" for i in range(4)]
    assert [volume.patient for volume in found.volumes] == [f"patient {i}" for i in range(4)]
    assert [[le.id for le in volume.lesions] for volume in found.volumes] == [
        [],
        [1, 2],
        [3, 4],
        [],
    ]
    for volume in found.volumes:
        with np.load(source / f"{volume.name}.npz") as arrays:
            assert np.array_equal(read_voxels(tmp_path / "mine" / volume.image), arrays["hu"])
    assert sorted(sum(found.splits.values(), ())) == [f"patient {i}" for i in range(4)]
    assert not working_folder(tmp_path / "mine").exists()
    check_trains_and_evaluates(tmp_path / "mine", tmp_path)


# Imports, and dies like by kill -9 in the middle of the third file of voxels.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from lesion_d2.importers import journal
from lesion_d2.importers.running import run_import
from made_up_format import list_npz

write, calls = journal.write_voxels, iter(range(1, 9))

def write_and_die(file, voxels):
    if next(calls) == 3:
        Path(file).with_name("." + Path(file).name + ".part").write_bytes(b"half a volume")
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, voxels)

journal.write_voxels = write_and_die
run_import(list_npz(Path(sys.argv[1])), sys.argv[2], format="npz", workers=1)
"""


def test_a_killed_import_goes_on_and_gives_the_same_bytes(source, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(folder=os.fspath(Path(__file__).parents[1])))
    killed = run_script(script, str(source), str(tmp_path / "mine"), cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "mine").exists()
    summary = run(list_npz(source), tmp_path / "mine")
    assert summary.num_resumed == 2 and summary.num_cases == 4
    whole = run(list_npz(source), tmp_path / "whole")
    assert whole.num_resumed == 0 and whole.left_out == summary.left_out
    assert _files(tmp_path / "mine") == _files(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.py", "mine", "source", "whole"]


def _import_part(rank: int, source: str, output: str) -> None:
    run(list_npz(Path(source)), output, shard=Shard(rank + 1, 2))


def test_two_parts_at_a_time_give_the_data_set_of_one_call(source, tmp_path):
    paths = str(source), str(tmp_path / "mine")
    start_processes(_import_part, paths, nprocs=2)
    run(list_npz(source), tmp_path / "whole")
    assert _files(tmp_path / "mine") == _files(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "source", "whole"]
    late = run(list_npz(source), tmp_path / "mine", shard=Shard(1, 2))  # queued once more
    assert late.stood and late.written and not working_folder(tmp_path / "mine").exists()
    with pytest.raises(FileExistsError, match="found a volume set"):
        run(list_npz(source, options={"level": 3}), tmp_path / "mine", shard=Shard(1, 2))
    with pytest.raises(ValueError, match="found --overwrite with --shard"):
        run(list_npz(source), tmp_path / "mine", shard=Shard(1, 2), overwrite=True)


def test_a_part_that_ends_while_another_one_tidies_up_does_nothing(source, tmp_path, monkeypatch):
    late, rmtree = [], shutil.rmtree
    part = partial(run, list_npz(source), tmp_path / "mine")

    def end_meanwhile(folder, **options):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", rmtree)
            late.append(part(shard=Shard(1, 2)))
        rmtree(folder, **options)

    part(shard=Shard(1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", end_meanwhile)
        assert part(shard=Shard(2, 2)).written
    assert len(late) >= 2 and all(summary.stood for summary in late)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "source"]
    working = working_folder(tmp_path / "mine")
    (working / "cases").mkdir(parents=True)  # as of a call that is about to remove it
    with locked(working / "lock"):
        assert part(shard=Shard(2, 2)).stood
    assert part(shard=Shard(2, 2)).stood and not working.exists()


def test_the_call_that_finds_no_case_missing_tells_of_all_damaged_ones(source, tmp_path):
    part = partial(run, list_npz(source), tmp_path / "mine")
    good = (source / "case_1.npz").read_bytes()
    (source / "case_1.npz").write_bytes(good[:100])
    second = part(shard=Shard(2, 3))
    assert second.is_part and len(second.damaged) == 1 and not second.written
    first = part(shard=Shard(1, 3))
    assert first.is_part and not first.damaged
    third = part(shard=Shard(3, 3))
    assert third.damaged == second.damaged and not third.is_part and not third.written
    (source / "case_1.npz").write_bytes(good)
    again = part(shard=Shard(1, 3))
    assert again.is_part and again.num_resumed == 2  # what was wrong with a file is forgotten
    assert part(shard=Shard(2, 3)).written
    run(list_npz(source), tmp_path / "whole")
    assert _files(tmp_path / "mine") == _files(tmp_path / "whole")


def test_parts_leave_out_damaged_cases_where_that_is_asked_for(source, tmp_path):
    (source / "case_1.npz").write_bytes(b"")
    options = {"skip_damaged": True}
    parts = [run(list_npz(source), tmp_path / "mine", shard=Shard(i, 2), **options) for i in (2, 1)]
    whole = run(list_npz(source), tmp_path / "whole", **options)
    assert [part.written for part in parts] == [False, True]
    assert parts[1].left_out == whole.left_out and parts[1].damaged == whole.damaged
    assert _files(tmp_path / "mine") == _files(tmp_path / "whole")


@pytest.mark.skipif(METHOD != "forkserver", reason="a spawned worker takes seconds to import torch")
def test_the_number_of_workers_does_not_change_a_byte(source, tmp_path, warm_spawn):
    run(list_npz(source), tmp_path / "one")
    run(list_npz(source), tmp_path / "two", workers=2)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_damaged_cases_are_told_of_and_the_import_goes_on_where_they_are_repaired(source, tmp_path):
    good = (source / "case_1.npz").read_bytes()
    (source / "case_1.npz").write_bytes(good[:100])
    listing = list_npz(source, left_out=("x\udcff\x1b[31m: a CSV",))
    summary = run(listing, tmp_path / "mine")
    assert not summary.written and not (tmp_path / "mine").exists()
    (line,) = summary.damaged
    assert line == f"case case_1: {source}/case_1.npz: found no npz file, expected hu and labels"
    assert summary.left_out[:2] == (line, "x??[31m: a CSV")  # what has to be repaired is first
    assert summary.left_out_file.read_text().splitlines() == list(summary.left_out)
    (source / "case_1.npz").write_bytes(good)
    summary = run(listing, tmp_path / "mine")
    assert summary.written and summary.num_resumed == 3 and not summary.damaged
    assert summary.left_out_file == tmp_path / "mine" / "left_out.txt"
    assert summary.left_out_file.read_text().splitlines() == list(summary.left_out)
    assert len(summary.volume_set.volumes) == 4


def test_damaged_cases_are_skipped_where_that_is_asked_for(source, tmp_path):
    (source / "case_1.npz").write_bytes(b"")
    listing = list_npz(source, damaged=("y: half a case",), left_out=("y: half a case",))
    summary = run(listing, tmp_path / "mine", skip_damaged=True)
    assert summary.written and len(summary.damaged) == 2
    assert [v.name for v in summary.volume_set.volumes] == ["case_0", "case_2", "case_3"]
    assert sorted(os.listdir(tmp_path / "mine" / "images")) == [f"case_{i}.b2nd" for i in (0, 2, 3)]
    assert not run(listing, tmp_path / "other").written  # the listing's own damage counts alone


def test_changed_files_and_options_are_imported_anew(source, tmp_path):
    (source / "case_3.npz").write_bytes(b"")
    assert not run(list_npz(source), tmp_path / "mine").written
    write_cases(source, 4, size=40)
    os.utime(source / "case_0.npz", ns=(1, 1))
    assert run(list_npz(source), tmp_path / "mine").num_resumed == 0
    (source / "case_3.npz").write_bytes(b"")
    assert not run(list_npz(source), tmp_path / "next").written
    write_cases(source, 4, size=40)
    other = list_npz(source, options={"level": 3})
    assert run(other, tmp_path / "next").num_resumed == 0


def test_a_dry_run_reads_and_writes_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(made_up_format, "read_case", _bug)
    summary = run(list_npz(source), tmp_path / "mine", dry_run=True)
    assert not summary.written and summary.num_cases == 4
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_what_stands_there_is_replaced_only_where_that_is_asked_for(source, tmp_path):
    run(list_npz(source), tmp_path / "mine")
    before = _files(tmp_path / "mine")
    with pytest.raises(FileExistsError, match=r"mine: found a volume set.* pass --overwrite"):
        run(list_npz(source), tmp_path / "mine")
    (source / "case_0.npz").unlink()
    (source / "case_1.npz").write_bytes(b"")
    assert not run(list_npz(source), tmp_path / "mine", overwrite=True).written
    assert _files(tmp_path / "mine") == before
    assert run(list_npz(source), tmp_path / "mine", overwrite=True, skip_damaged=True).written
    assert [v.name for v in read_volume_set(tmp_path / "mine").volumes] == ["case_2", "case_3"]
    with pytest.raises(FileExistsError, match="found a file or folder that is not a volume set"):
        run(list_npz(source), source, overwrite=True)


def test_what_a_call_left_that_was_killed_at_its_very_end_is_removed(source, tmp_path):
    run(list_npz(source), tmp_path / "mine")
    working = working_folder(tmp_path / "mine")
    (working / "cases").mkdir(parents=True)
    (working / "old").mkdir()
    with pytest.raises(FileExistsError):
        run(list_npz(source), tmp_path / "mine")
    assert not working.exists() and (tmp_path / "mine" / "volume_set.json").is_file()


def test_the_old_data_set_comes_back_where_a_call_was_killed_before_the_new_one_came(
    source, tmp_path
):
    run(list_npz(source), tmp_path / "mine")
    before = _files(tmp_path / "mine")
    (tmp_path / "mine").rename(tmp_path / ".mine.old")
    with pytest.raises(FileExistsError, match="found a volume set"):
        run(list_npz(source), tmp_path / "mine")
    assert _files(tmp_path / "mine") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "source"]


def test_names_that_are_taken_or_none(source, tmp_path):
    for name, found in (
        ("phantom", "phantom_"),
        ("phantom_train", "phantom_train"),
        ("toy_circles_scale", "toy_circles_scale_"),
        ("toy_donuts_pattern_val", "toy_donuts_pattern_val"),
    ):
        with pytest.raises(
            ValueError, match=f"found a registered data set {found}.*expected another"
        ):
            run(list_npz(source), tmp_path / name)
    with pytest.raises(ValueError, match="found the name 'my data', expected up to 100 letters"):
        run(list_npz(source), tmp_path / "my data")


def test_two_imports_at_one_place(source, tmp_path):
    working = working_folder(tmp_path / "mine")
    working.mkdir()
    with locked(working / "lock"), pytest.raises(BlockingIOError, match="another process"):
        run(list_npz(source), tmp_path / "mine")
    assert run(list_npz(source), tmp_path / "mine").written


def _listing(*cases: Case) -> Listing:
    return Listing(("x",), cases)


def _case(name: str, patient: str = "p", split: str | None = None, read=None) -> Case:
    return Case(name, patient, read, (f"{name}.npz",), split)


def test_listings_that_cannot_be_imported(tmp_path):
    for message, listing in {
        "found no case to import, expected at least one: found no files of": _listing(),
        "at least one: 2 problems\n  a: a CSV\n  b: a ZIP": Listing(
            ("x",), (), ("a: a CSV", "b: a ZIP")
        ),
        r"a\.npz, A\.npz: found two cases with the name 'A'": _listing(_case("a"), _case("A")),
        "case a: found the split 'dev', expected one of": _listing(_case("a", split="dev")),
        r"patient p: found in train and in test \(case b\), .* --new-split": _listing(
            _case("a", split="train"), _case("b", split="test")
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            run(listing, tmp_path / "mine")


def test_choices_that_are_none_are_refused_before_anything_is_read(source, tmp_path):
    twice = ({"train": ("p",), "val": ("q", "p")},)
    for message, folds, options in (
        (r"found shares \[0.0, 0.0, 0.0\], expected 0 or more", (), {"shares": (0, 0, 0)}),
        ("found the seed -1, expected 0 or more", (), {"seed": -1}),
        (r"patient p: found in train and in val of fold 0, .* pass --new-split", twice, {}),
    ):
        with pytest.raises(ValueError, match=message):
            run(list_npz(source, folds=folds), tmp_path / "mine", **options)
        assert not working_folder(tmp_path / "mine").exists()
    assert run(list_npz(source, folds=twice), tmp_path / "mine", new_split=True).written


def test_the_splits_of_the_source_are_kept_unless_new_ones_are_asked_for(source, tmp_path):
    listing = list_npz(source, folds=({"train": ("patient 0",), "val": ("patient 1",)},))
    cases = [
        Case(c.name, c.patient, c.read, c.sources, "test" if c.name == "case_2" else None)
        for c in listing.cases
    ]
    listing = Listing(listing.classes, tuple(cases), folds=listing.folds)
    kept = run(listing, tmp_path / "kept").volume_set
    assert kept.splits == {
        "train": ("patient 0",),
        "val": ("patient 1",),
        "test": ("patient 2",),
    }
    assert kept.folds == listing.folds
    new = run(listing, tmp_path / "new", new_split=True, shares=(1, 0, 0)).volume_set
    assert new.folds == () and set(new.splits) == {"train"} and len(new.splits["train"]) == 4


def _wrong_shape() -> ImportedVolume:
    imported = made_up_format.read_case(_FILE[0])
    return ImportedVolume(imported.voxels[1:], imported.volume)


def _wrong_class() -> ImportedVolume:
    return made_up_format.read_case(_FILE[0])  # its second lesion has class 1


def _bug() -> ImportedVolume:
    return {}["no such key"]


_FILE: list[str] = []


def test_faults_of_a_reader_are_told_of_like_those_of_a_case(source, tmp_path, capsys):
    _FILE[:] = [str(source / "case_1.npz")]
    cases = [_case(str(i), read=read) for i, read in enumerate((_wrong_shape, _wrong_class, _bug))]
    summary = run(_listing(*cases), tmp_path / "mine")
    shape, category, bug = summary.damaged
    assert shape.startswith("case 0: 0.npz: found voxels int16 of shape (5, 48, 48), expected")
    assert category.startswith("case 1: volume_set.json: volume '1', lesion 2: category: found 1")
    assert bug == "case 2: KeyError: 'no such key'"
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_ends_the_import(source, tmp_path, monkeypatch):
    def full(file, voxels):
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(journal_module, "write_voxels", full)
    with pytest.raises(OSError, match="No space left"):
        run(list_npz(source), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
