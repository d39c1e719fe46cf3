"""The table of the benchmark, and how its times and memory are taken."""

import signal

import lesion_d2
from lesion_d2.experiments.benchmark import __main__, memory, timing
from lesion_d2.experiments.benchmark.__main__ import main
from lesion_d2.experiments.benchmark.timing import Row, Times

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode as CN


@pytest.mark.parametrize(
    ("limit", "at_least", "cell"),
    [(None, False, ""), (2, False, "yes"), (1, False, "NO"), (1, True, "yes"), (2, True, "NO")],
)
def test_rows_tell_whether_their_limit_holds(limit, at_least, cell):
    row = Row("time", 1.5, "s", limit, at_least=at_least)
    assert row.cells()[3] == cell and row.ok == (cell != "NO")


def test_calls_take_turns_and_the_first_ones_are_not_timed():
    order = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    times = timing.time_calls(calls, repeats=3, warm_up=2)
    assert "".join(order) == "ababababab"
    assert [len(t.seconds) for t in times] == [3, 3]


def test_ratios_are_the_median_over_pairs():
    ours, theirs = Times([2.0, 30.0, 3.0]), Times([1.0, 10.0, 2.0])
    row = timing.paired_ratio("step", ours, theirs, "2 images", limit=1.9)
    assert row.measured == 2 and row.note == "3000 against 2000 ms, 2 images"
    assert row.cells()[2:4] == ["<= 1.9 x", "NO"]
    assert timing.paired_ratio("step", ours, theirs, "2 images").limit is None
    ours.cpu_seconds, theirs.cpu_seconds = [4.0, 1.0, 3.0], [1.0, 1.0, 1.0]
    row = timing.paired_ratio("step", ours, theirs, "2 images", of_processor=True)
    assert row.measured == 3 and row.note == "3000 against 1000 ms, 2 images"


def test_one_thread_lasts_as_long_as_its_block(monkeypatch):
    numbers = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    with pytest.raises(ValueError, match="inside"), timing.one_thread():
        assert numbers == [1]
        raise ValueError("inside")
    assert numbers == [1, 7]


def hold_bytes(cfg):
    """Work that needs cfg.SIZE MiB."""
    np.ones((cfg.SIZE, 2**20), np.uint8)


def test_peak_memory_is_what_the_work_needs_beyond_its_process(warm_spawn):
    here = np.ones((300, 2**20), np.uint8)  # the parent's memory does not count
    cfg = CN({"MODEL": {"DEVICE": "cpu"}, "SIZE": 200})
    assert memory.peak_memory(hold_bytes, cfg) == pytest.approx(200, rel=0.2)
    del here


def test_the_part_of_uldor_gets_the_folder_of_data_sets(monkeypatch, capsys):
    def measure(device, folder, **options):
        assert folder.is_dir()
        yield Row(f"{device} {sorted(options)}", 1.0)

    monkeypatch.setattr("lesion_d2.experiments.benchmark.__main__.measure_uldor", measure)
    for with_gpu, expected in ((False, ["cpu []"]), (True, ["cpu []", "cuda ['repeats']"])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=with_gpu: found)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        assert main(["--only", "uldor"]) == 0
        lines = capsys.readouterr().out.splitlines()[2:-1]
        assert [line.rsplit(maxsplit=1)[0].strip() for line in lines] == expected


def test_without_a_checkout_the_configs_are_missed_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lesion_d2, "__file__", str(tmp_path / "lib" / "lesion_d2.py"))
    for part in ("model", "zlocha"):
        assert main(["--only", "froc", part]) == 1
        output = capsys.readouterr()
        assert output.err == (
            f"error: {tmp_path / 'configs'}: not found, expected it in a checkout of the project "
            "(pip install -e .)\n"
        )
        assert not output.out
    monkeypatch.setattr("lesion_d2.experiments.benchmark.__main__.measure_froc", lambda: [])
    assert main(["--only", "froc"]) == 0  # needs none


def test_the_command_prints_a_table_and_fails_where_a_limit_is_exceeded(monkeypatch, capsys):
    rows = [Row("fast", 1.0, "s", 2.0), Row("slow", 3.0, "s", 2.0, "a note")]
    expected = ["fast 1 s <= 2 s yes", "slow 3 s <= 2 s NO a note"]
    for number, code, last in ((1, 0, "no limit exceeded"), (2, 1, "limits exceeded; slow")):
        shown = rows[:number]
        monkeypatch.setattr(
            "lesion_d2.experiments.benchmark.__main__.measure_froc", lambda s=shown: s
        )
        assert main(["--only", "froc"]) == code
        lines = capsys.readouterr().out.splitlines()[2:]
        assert [" ".join(line.split()) for line in lines] == [*expected[:number], last]


def test_peers_are_one_run(monkeypatch):
    measured = []
    monkeypatch.setattr(__main__, "measure", lambda parts, _: measured.append(parts) or [])
    assert main(["--peers"]) == main([]) == 0
    peers, default = measured
    assert {"peers", "monai", "clustering"} <= set(peers) and "peers" not in default
    with pytest.raises(SystemExit):
        main(["--peers", "--only", "csv"])


def test_each_row_is_printed_before_the_next_one_is_measured(monkeypatch, capsys):
    def measure():
        yield Row("first", 1.0)
        assert capsys.readouterr().out.splitlines()[-1].split() == ["first", "1"]
        yield Row("second", 2.0)
        raise KeyboardInterrupt  # someone stops the run

    monkeypatch.setattr("lesion_d2.experiments.benchmark.__main__.measure_froc", measure)
    assert main(["--only", "froc"]) == 128 + signal.SIGINT
    assert capsys.readouterr().out.splitlines()[-1].split() == ["second", "2"]
