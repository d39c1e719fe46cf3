import fcntl
import json
import math
import os
from contextlib import contextmanager
from pathlib import Path

from lesion_d2.data.deeplesion.key_slices import register_deeplesion
from lesion_d2.data.phantoms.phantom import write_phantom
from lesion_d2.data.pseudo_masks import PseudoMask, grabcut_image, pseudo_mask
from lesion_d2.data.pseudo_masks.files import load_mask_file, mask_annotation
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.tools import prepare_masks as tool
from lesion_d2.utils.files import locked
from lesion_d2.utils.shards import Shard

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_util
from warm_processes import run_script, start_processes

NAME = "phantom_of_test_prepare_masks"
# Runs the tool, and kills it in the middle of a line after the third image. It holds a lock, and so
# does every worker as long as it lives.
KILLED_RUN = f"""
import fcntl, multiprocessing, os, signal, sys
from lesion_d2.data.deeplesion import register_deeplesion
from lesion_d2.tools import prepare_masks

root, output, workers, lock = sys.argv[1:]
held = open(lock, "w")
fcntl.flock(held, fcntl.LOCK_EX)
# A spawned worker takes seconds to import torch. Nothing used OpenCV's threads in this process.
get_context = multiprocessing.get_context
multiprocessing.get_context = lambda method: get_context("fork")
register_deeplesion({NAME!r}, root, None)
append, calls = prepare_masks._append, []

def append_and_die(file, line):
    calls.append(line)
    if len(calls) <= 4:  # the header and three images
        return append(file, line)
    file.write('{{"image_id": "0000')
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

prepare_masks._append = append_and_die
prepare_masks.prepare_masks({NAME!r}, "grabcut", output, int(workers))
"""


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """The folder of a small phantom data set, registered under NAME."""
    root = tmp_path_factory.mktemp("masks") / "phantom"
    write_phantom(root, num_patients=4, size=192, extent_mm=0, workers=1)
    register_deeplesion(NAME, os.fspath(root), None)
    yield root
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def finished(phantom, tmp_path_factory):
    """The GrabCut file of the data set, made in one process."""
    output = tmp_path_factory.mktemp("finished") / "masks.json"
    prepare(output)
    return output


def lesions():
    return [(d, a) for d in DatasetCatalog.get(NAME) for a in d["annotations"]]


def prepare(output, dataset=NAME):
    return tool.prepare_masks(dataset, "grabcut", os.fspath(output), workers=1)


def write_journal(output, *lines, **info):
    """A journal of finished images, one a line, beside the file to write."""
    info = {"method": "grabcut", "dataset": NAME, "window": "DICOM", **info}
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    journal = Path(f"{output}.partial")
    journal.write_text("".join(line + "\n" for line in (json.dumps({"info": info}), *lines)))
    return journal


def finished_images(folder):
    """The images that the journals in a folder have."""
    lines = [s for file in folder.glob("*.partial*") for s in file.read_text().splitlines(True)]
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return {line["image_id"] for line in whole if "image_id" in line}


@contextmanager
def unreadable(image_ids):
    """The slices of these images, and of no others, are truncated, which their headers hide."""
    files = [Path(d["file_name"]) for d in DatasetCatalog.get(NAME) if d["image_id"] in image_ids]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content[:-9])
    try:
        yield
    finally:
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)


def test_the_file_holds_the_masks_of_all_lesions_in_order(finished):
    masks = load_mask_file(finished)
    assert masks.info["method"] == "grabcut" and masks.info["dataset"] == NAME
    assert len(masks) == len(lesions()) > 10
    for record, annotation in lesions():
        found = masks.mask(record, annotation)
        image = grabcut_image(read_slice(record["file_name"]), record["window"])
        expected = pseudo_mask("grabcut", image, annotation["recist"], annotation["bbox"]).mask
        np.testing.assert_array_equal(found, expected)
    entries = json.loads(finished.read_text())["annotations"]
    assert [e["row"] for e in entries] == [a["row"] for _, a in lesions()]


def test_the_number_of_workers_does_not_change_the_file(finished, tmp_path, warm_spawn):
    output = tmp_path / "new folder" / "masks.json"
    summary = tool.prepare_masks(NAME, "grabcut", os.fspath(output), workers=2)
    assert output.read_bytes() == finished.read_bytes()
    assert summary.lesions == len(lesions()) and not summary.stood
    assert [p.name for p in output.parent.iterdir()] == ["masks.json"]


def _prepare_part(rank: int, root: str, output: str) -> None:
    register_deeplesion(NAME, root, None)
    tool.prepare_masks(NAME, "grabcut", output, workers=1, shard=Shard(rank + 1, 2))


def test_two_parts_at_a_time_give_the_file_of_one_call(phantom, finished, tmp_path):
    output = tmp_path / "masks.json"
    start_processes(_prepare_part, (os.fspath(phantom), os.fspath(output)), nprocs=2)
    assert output.read_bytes() == finished.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["masks.json"]


def test_a_part_that_finds_all_joined_meanwhile_leaves_nothing(finished, tmp_path, monkeypatch):
    """Another part has joined all of them when this one takes the lock to do so."""
    output, joining = tmp_path / "masks.json", tool.joining

    def join_before(file, shard):
        output.write_bytes(finished.read_bytes())
        for journal in tmp_path.glob("masks.json.partial*"):
            journal.unlink()
        return joining(file, shard)

    args = ["--dataset", NAME, "--method", "grabcut", "--output", str(output), "--workers", "1"]
    assert tool.main([*args, "--shard", "1/2"]) == 0
    monkeypatch.setattr(tool, "joining", join_before)
    assert tool.main([*args, "--shard", "2/2"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["masks.json"]


def test_killed_parts_go_on_and_the_last_one_joins(phantom, finished, tmp_path, capsys):
    output = tmp_path / "masks.json"
    args = ["--dataset", NAME, "--method", "grabcut", "--output", str(output), "--workers", "1"]
    assert tool.main([*args, "--shard", "2/3"]) == 0
    assert "part 2/3 of" in capsys.readouterr().out and not output.exists()
    journal = tmp_path / "masks.json.partial.2-of-3"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 1 + len(Shard(2, 3).of(DatasetCatalog.get(NAME))) > 3
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # as a kill leaves it

    assert tool.main([*args, "--shard", "1/3"]) == tool.main([*args, "--shard", "3/3"]) == 0
    assert not output.exists()

    done = finished_images(tmp_path)
    assert len(done) == len(DatasetCatalog.get(NAME)) - (len(lines) - 3)
    with unreadable(done):  # which nobody computes again
        assert tool.main([*args, "--shard", "2/3"]) == 0
    assert output.read_bytes() == finished.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["masks.json"]
    assert tool.main([*args, "--shard", "3/3"]) == 0  # as of a job that is queued again
    assert "already exists" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_where_it_stopped(phantom, finished, tmp_path, workers):
    output, script, lock = (tmp_path / name for name in ("masks.json", "killed.py", "lock"))
    script.write_text(KILLED_RUN)
    arguments = map(str, (phantom, output, workers, lock))
    run = run_script(script, *arguments, cwd=tmp_path)
    with open(lock) as file:  # the workers are gone as well
        fcntl.flock(file, fcntl.LOCK_EX)
    script.unlink()
    lock.unlink()
    assert run.returncode == -9, run.stderr
    assert not output.exists()
    journal = Path(f"{output}.partial").read_text()
    assert journal.endswith('{"image_id": "0000')
    done = finished_images(tmp_path)
    assert len(done) == 3

    with unreadable(done):  # which nobody computes again
        prepare(output)
    assert output.read_bytes() == finished.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["masks.json"]


def test_journal_of_another_method_is_refused(phantom, tmp_path):
    output = tmp_path / "masks.json"
    journal = write_journal(output, method="ellipse")
    before = journal.read_bytes()

    with pytest.raises(ValueError, match=r"masks\.json\.partial: found the journal of .*ellipse"):
        prepare(output)
    assert journal.read_bytes() == before and not output.exists()


def test_a_second_run_to_the_same_file_is_refused_while_the_first_is_at_work(
    phantom, tmp_path, capsys
):
    output = tmp_path / "masks.json"
    args = ["--dataset", NAME, "--method", "ellipse", "--output", str(output), "--workers", "1"]
    with locked(f"{output}.partial"):
        assert tool.main(args) == 1
    assert (
        capsys.readouterr().err
        == f"error: {output}.partial: another process has locked this file\n"
    )
    assert tool.main(args) == 0 and [p.name for p in tmp_path.iterdir()] == ["masks.json"]


def test_a_damaged_journal_is_an_error_with_its_line(phantom, tmp_path):
    write_journal(tmp_path / "masks.json", "hello", {})
    with pytest.raises(ValueError, match=r"masks\.json\.partial, line 2: found b'hello'"):
        prepare(tmp_path / "masks.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 10_000, "found b'.*expected a JSON object"),
        ("1" * 5000, "found b'1111.*expected a JSON object"),
        ('{"image_id": [1], "annotations": []}', r"image_id: found \[1\], expected a name"),
        ('{"image_id": "a"}', "annotations: found None, expected a list"),
        ('{"image_id": "a", "annotations": 5}', "annotations: found 5, expected a list"),
        ('{"image_id": "a", "annotations": null}', "annotations: found None, expected a list"),
        ('{"image_id": "a", "annotations": [5]}', "annotation 0: found 5, expected an object"),
        ('{"image_id": "a", "annotations": [{}]}', "annotation 0: found no 'image_id'"),
    ],
)
def test_journals_are_told_of_by_line_and_key(phantom, tmp_path, line, message):
    write_journal(tmp_path / "masks.json", line)
    with pytest.raises(ValueError, match=rf"json\.partial, line 2: {message}.*; remove the file$"):
        prepare(tmp_path / "masks.json")


@pytest.fixture
def one_image(phantom):
    """The dict of the only image of a registered data set, and the set's name."""
    record = dict(DatasetCatalog.get(NAME)[0])
    DatasetCatalog.register(f"{NAME}_one", lambda: [record])
    yield record, f"{NAME}_one"
    DatasetCatalog.remove(f"{NAME}_one")


def test_journal_entries_of_other_masks_are_computed_again(one_image, tmp_path):
    record, name = one_image
    output, size = tmp_path / "masks.json", (record["height"], record["width"])

    def fallbacks(image_id, named, size):
        """Lesions that are taken from a journal in which all of them fell back."""
        masks = PseudoMask(np.ones(size, bool), True)
        found = [mask_annotation(named, a, masks) for a in record["annotations"]]
        write_journal(output, {"image_id": image_id, "annotations": found}, dataset=name)
        number = prepare(output, name).fallbacks
        output.unlink()
        return number

    own = record["image_id"]
    assert fallbacks(own, own, size) == len(record["annotations"])
    assert fallbacks(own, own, (size[0], 10)) == 0
    assert fallbacks("b", "b", size) == fallbacks(own, "b", size) == 0


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"a": 5}, "image a: found 5, expected masks by rows"),
        ({"a": {}}, r"found no mask of row 2 \(image a\) of set, expected one"),
        ({"a": {"2": None}}, "image a, row 2: found the mask None"),
        (
            {"a": {"2": {"size": [100_000, 100_000], "counts": "00"}}},
            "row 2: found a mask of the s",
        ),
        ({"a": {"2": {"size": [10, 12], "counts": "h3"}}}, r"found a mask of \[10, 12\] pixels"),
        ({"a": {"2": {"size": [12, 10], "counts": "h1"}}}, "row 2: found an RLE mask of"),
    ],
)
def test_true_masks_are_told_of_by_image_and_row(tmp_path, truth, message):
    lesion = {"row": 2, "recist": [2.0, 4.0, 8.0, 4.0, 5.0, 2.0, 5.0, 6.0]}
    image = {"image_id": "a", "height": 12, "width": 10, "annotations": [lesion]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    DatasetCatalog.register("set", lambda: [image])
    try:
        with pytest.raises(ValueError, match=rf"truth\.json: .*{message}"):
            tool.dice_against_truth("set", "ellipse", os.fspath(tmp_path / "truth.json"))
    finally:
        DatasetCatalog.remove("set")


def test_journal_entries_of_changed_lesions_are_computed_again(phantom, finished, tmp_path):
    output = tmp_path / "masks.json"
    entries = json.loads(finished.read_text())["annotations"]
    first = [e for e in entries if e["image_id"] == entries[0]["image_id"]]
    stale = [{**e, "recist": [v + 1 for v in e["recist"]]} for e in first]
    write_journal(output, {"image_id": entries[0]["image_id"], "annotations": stale})
    prepare(output)
    assert output.read_bytes() == finished.read_bytes()


def test_a_finished_file_is_left_alone(finished, capsys):
    before = finished.stat().st_mtime_ns
    arguments = ["--dataset", NAME, "--method", "grabcut", "--output", os.fspath(finished)]
    assert tool.main(arguments) == 0
    assert "already exists and covers" in capsys.readouterr().out
    assert finished.stat().st_mtime_ns == before


def test_journals_beside_a_finished_file_are_removed(finished, tmp_path):
    """A kill comes between the writing of the one and the removal of the others."""
    output = tmp_path / "masks.json"
    output.write_bytes(finished.read_bytes())
    info = {"method": "grabcut", "dataset": NAME, "window": "DICOM"}
    others = {**info, "method": "ellipse"}
    held, other = (f"{output}.partial{end}" for end in (".1-of-3", ".2-of-3"))
    for file, content in ((held, info), (other, others), (f"{output}.partial", info)):
        Path(file).write_text(json.dumps({"info": content}) + "\n")
    with locked(held):
        assert prepare(output).stood
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["masks.json", *(os.path.basename(file) for file in (held, other))]


def test_a_finished_file_of_another_method_is_refused(finished, capsys):
    before = finished.read_bytes()
    arguments = ["--dataset", NAME, "--method", "ellipse", "--output", os.fspath(finished)]
    assert tool.main(arguments) == 1
    assert "found masks of {'method': 'grabcut'" in capsys.readouterr().err
    assert finished.read_bytes() == before


def test_a_stale_file_is_made_anew(finished, tmp_path):
    output = tmp_path / "masks.json"
    content = json.loads(finished.read_text())
    content["annotations"][0]["recist"][0] += 3
    output.write_text(json.dumps(content))
    assert not prepare(output).stood
    assert output.read_bytes() == finished.read_bytes()


def test_last_line_tells_lesions_fallbacks_and_seconds(phantom, tmp_path, capsys):
    output = os.fspath(tmp_path / "masks.json")
    assert (
        tool.main(["--dataset", NAME, "--method", "ellipse", "--output", output, "--workers=1"])
        == 0
    )
    last = capsys.readouterr().out.strip().splitlines()[-1]
    start = f"{NAME}: {len(lesions())} lesions, 0 fallbacks to the ellipse (0.0 %), "
    assert last.startswith(start) and last.endswith(" s")


def test_bad_slices_and_names_stop_with_one_line(phantom, tmp_path, capsys):
    name = f"{NAME}_bad"
    record = {**DatasetCatalog.get(NAME)[0], "height": 100}
    DatasetCatalog.register(name, lambda: [record])
    output = os.fspath(tmp_path / "masks.json")
    try:
        assert tool.main(["--dataset", name, "--output", output]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error == f"error: {record['file_name']}: found 192 x 192 pixels, expected 192 x 100"
        record["height"] = 192
        record["annotations"] = [{**record["annotations"][0], "recist": [float("nan")] * 8}]
        assert tool.main(["--dataset", name, "--output", output]) == 1
        row = record["annotations"][0]["row"]
        assert f"{record['file_name']}, row {row}: RECIST" in capsys.readouterr().err
    finally:
        DatasetCatalog.remove(name)
    assert tool.main(["--dataset", "no_such_data_set", "--output", output]) == 1
    assert "no_such_data_set" in capsys.readouterr().err

    for arguments in (
        [],
        ["--output", output, "--compare", output],
        ["--output", "x", "--workers=0"],
        ["--output", "x", "--shard=0/2"],
        ["--compare", "x", "--shard=1/2"],
        ["--compare", "x", "--limit=0"],
    ):
        with pytest.raises(SystemExit):
            tool.main(["--dataset", NAME, *arguments])


def test_grabcut_beats_the_ellipse_on_phantoms_and_the_crop_matches_the_whole_slice(phantom):
    cv2.setNumThreads(1)
    truth = os.fspath(phantom / "true_masks.json")
    ellipse = tool.dice_against_truth(NAME, "ellipse", truth).dice
    grabcut = tool.dice_against_truth(NAME, "grabcut", truth).dice
    whole = tool.dice_against_truth(NAME, tool.WHOLE_SLICE, truth).dice
    assert len(ellipse) == len(lesions())
    assert ellipse.mean() >= 0.80
    assert grabcut.mean() > ellipse.mean()
    assert grabcut.mean() > whole.mean() - 0.01


def test_dice_of_the_truth_itself_and_limit(phantom, tmp_path):
    truth = os.fspath(phantom / "true_masks.json")
    limited = tool.dice_against_truth(NAME, "ellipse", truth, limit=4)
    everything = tool.dice_against_truth(NAME, "ellipse", truth)
    assert len(limited.dice) == 4
    assert limited.dice[0] == everything.dice[0] and limited.dice[-1] == everything.dice[-1]

    lengths = np.array([math.dist(a["recist"][:2], a["recist"][2:4]) for _, a in lesions()])
    low, high = np.quantile(lengths, (0.25, 0.75))
    middle = tool.dice_against_truth(NAME, "ellipse", truth, diameters=(low, high)).dice
    chosen = (lengths >= low) & (lengths <= high)
    assert 0 < chosen.sum() < len(lengths)
    np.testing.assert_array_equal(middle, everything.dice[chosen])
    with pytest.raises(ValueError, match="no lesion with a long diameter of 900 to 901 px"):
        tool.dice_against_truth(NAME, "ellipse", truth, diameters=(900, 901))

    ellipses = {}
    for d, a in lesions():
        mask = pseudo_mask("ellipse", None, a["recist"], a["bbox"], (d["height"], d["width"])).mask
        rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
        rle["counts"] = rle["counts"].decode()
        ellipses.setdefault(d["image_id"], {})[str(a["row"])] = rle
    own = tmp_path / "own.json"
    own.write_text(json.dumps(ellipses))
    assert (tool.dice_against_truth(NAME, "ellipse", os.fspath(own)).dice == 1).all()

    own.write_text("{}")
    with pytest.raises(ValueError, match=r"own\.json: found no mask of row 2"):
        tool.dice_against_truth(NAME, "ellipse", os.fspath(own))
    own.write_text("{")
    with pytest.raises(ValueError, match=r"own\.json: .*JSON"):
        tool.dice_against_truth(NAME, "ellipse", os.fspath(own))


def test_compare_prints_the_three_methods(phantom, capsys):
    truth = os.fspath(phantom / "true_masks.json")
    assert tool.main(["--dataset", NAME, "--compare", truth, "--limit", "3"]) == 0
    rows = capsys.readouterr().out.strip().splitlines()[2:]
    assert [row[:24].strip() for row in rows] == ["ellipse", "grabcut", tool.WHOLE_SLICE]
    assert all(0 < float(row.split()[-3]) <= 1 for row in rows)


def test_images_without_files_can_be_left_out(tmp_path, capsys):
    root, name, output = tmp_path / "phantom", f"{NAME}_missing", os.fspath(tmp_path / "masks.json")
    write_phantom(root, num_patients=3, size=64, extent_mm=0, workers=1)
    register_deeplesion(name, os.fspath(root), None)
    arguments = ["--dataset", name, "--method", "ellipse", "--output", output, "--workers=1"]
    try:
        dicts = DatasetCatalog.get(name)
        Path(dicts[0]["file_name"]).unlink()
        assert tool.main(arguments) == 1
        assert dicts[0]["file_name"] in capsys.readouterr().err
        assert tool.main([*arguments, "--allow-missing"]) == 0
        assert len(load_mask_file(output)) == sum(len(d["annotations"]) for d in dicts[1:])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
