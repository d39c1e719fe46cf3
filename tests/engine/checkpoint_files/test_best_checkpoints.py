import json
import math
import os
import weakref
from pathlib import Path

from lesion_d2.engine import (
    CatchUpHook,
    KeepBestHook,
    LesionCheckpointer,
    ResumableBestCheckpointer,
)
from lesion_d2.engine.checkpoint_files.best_checkpoints import checkpoint_files, read_ranking

import numpy as np
import pytest
import torch
from detectron2.engine import TrainerBase, hooks
from detectron2.utils import comm
from tiny_run import tiny_args
from torch import nn

import train_net

METRIC = "bbox/AP50"


class Killed(BaseException):
    """No Exception, so that nothing catches it."""


class Run(TrainerBase):
    """Its weight is the number of the iteration; the evaluations after each give the values."""

    def __init__(self, folder, values, *, max_to_keep=3, save_period=1, mode="max", metric=METRIC):
        super().__init__()
        folder.mkdir(exist_ok=True)
        self.values, self.folder = values, folder
        self.checkpointer = LesionCheckpointer(
            nn.Linear(1, 1), str(folder), trainer=weakref.proxy(self)
        )
        best = ResumableBestCheckpointer(1, self.checkpointer, metric, mode)
        keep = KeepBestHook(
            1, self.checkpointer, metric, mode, max_to_keep=max_to_keep, best_checkpointer=best
        )
        late = [hooks.EvalHook(1, self._evaluate), best, keep]
        first = hooks.PeriodicCheckpointer(self.checkpointer, save_period)
        self.register_hooks([first, *late, CatchUpHook(1, late)])
        self.start_iter = 0

    def _evaluate(self):
        value = self.values[min(self.storage.iter, len(self.values) - 1)]
        return {"bbox": {"AP50": value, "AP10": -value}}

    def run_step(self):
        with torch.no_grad():
            self.checkpointer.model.weight.fill_(self.iter)

    def run(self, *, resume=False, dies_after=None):
        if resume:
            self.checkpointer.resume_or_load("", resume=True)
            self.start_iter = self.iter + 1
        if dies_after is not None:
            self.run_step = self._dying_step(self.run_step, dies_after)
            self.after_train = lambda: None
        self.train(self.start_iter, len(self.values))
        return self

    def _dying_step(self, run_step, dies_after):
        def dying_step():
            if self.iter > dies_after:
                raise Killed
            run_step()

        return dying_step


def _kept(folder: Path, metric=METRIC) -> list[tuple[float, int]]:
    """Value and iteration, the best first; every file is there, with the iteration's weights."""
    ranking = json.loads((folder / "best" / "best.json").read_text())
    for entry in ranking:
        assert set(entry) == {"file", "metric", "value", "iteration", "run_id"}
        content = torch.load(folder / "best" / entry["file"], weights_only=True)
        assert set(content) == {"model"}
        assert entry["file"] == f"model_{entry['iteration']:07d}.pth"
        assert content["model"]["weight"].item() == entry["iteration"]
        assert entry["metric"] == metric
    assert len({entry["run_id"] for entry in ranking}) <= 1
    return [(entry["value"], entry["iteration"]) for entry in ranking]


def _expected(values, max_to_keep, sign=1):
    finite = [(v, i) for i, v in enumerate(values) if math.isfinite(v)]
    return sorted(finite, key=lambda pair: (-sign * pair[0], pair[1]))[:max_to_keep]


def _files(folder: Path) -> set[str]:
    return set(os.listdir(folder / "best"))


def _values(seed, num=7):
    """With ties, and now and then none."""
    values = np.random.default_rng(seed).integers(0, 6, num).astype(float).tolist()
    return [math.nan if v == 5 else v for v in values]


@pytest.mark.parametrize("max_to_keep", [1, 3, 20])
@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(2))
def test_the_best_are_kept(tmp_path, max_to_keep, mode, seed):
    values = _values(seed)
    Run(tmp_path, values, max_to_keep=max_to_keep, mode=mode).run()
    expected = _expected(values, max_to_keep, {"max": 1, "min": -1}[mode])
    assert _kept(tmp_path) == expected
    assert _files(tmp_path) == {"best.json"} | {f"model_{i:07d}.pth" for _, i in expected}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("save_period", [1, 3])
@pytest.mark.parametrize("dies_after", [2, 4])
@pytest.mark.parametrize("seed", range(2))
def test_a_resumed_run_keeps_what_the_whole_run_keeps(tmp_path, save_period, dies_after, seed):
    values = _values(seed)
    with pytest.raises(Killed):
        Run(tmp_path, values, save_period=save_period).run(dies_after=dies_after)
    resumed = Run(tmp_path, values, save_period=save_period).run(resume=True)
    assert 0 < resumed.start_iter <= dies_after + 1
    assert _kept(tmp_path) == _expected(values, 3)
    Run(tmp_path, values).run(resume=True)  # a finished run: evaluated, not counted again
    assert _kept(tmp_path) == _expected(values, 3)


def _die_at(monkeypatch, number):
    """Die, with half of a file, before the so manieth file in the folder comes or goes."""
    count = 0

    def dying(change):
        def changed(*paths, **options):
            nonlocal count
            path = Path(paths[-1])
            if path.parent.name == "best" and not path.name.endswith(".part"):
                count += 1
                if count == number:
                    (path.parent / f".{path.name}.part").write_bytes(b"half")
                    raise Killed
            if count < number or not path.name.endswith(".part"):  # the dead clean nothing up
                return change(*paths, **options)
            return None

        return changed

    monkeypatch.setattr(os, "replace", dying(os.replace))
    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))


@pytest.mark.parametrize("number", range(1, 14))
def test_killed_at_any_time_the_folder_is_consistent(tmp_path, monkeypatch, number):
    values = [1.0, 3.0, 2.0, 5.0, 4.0, 0.0]
    with monkeypatch.context() as patch:
        _die_at(patch, number)
        run = Run(tmp_path, values, max_to_keep=2)
        run.after_train = lambda: None
        with pytest.raises(Killed):
            run.run()
        iteration = run.storage.iter if hasattr(run, "storage") else 0
    if (tmp_path / "best" / "best.json").exists():
        before = [_expected(values[: iteration + i], 2) for i in (0, 1)]
        assert _kept(tmp_path) in before
    resume = (tmp_path / "last_checkpoint").exists()
    Run(tmp_path, values, max_to_keep=2).run(resume=resume)
    assert _kept(tmp_path) == [(5.0, 3), (4.0, 4)]
    assert _files(tmp_path) == {"best.json", "model_0000003.pth", "model_0000004.pth"}


def test_what_another_run_left_stays_until_this_one_has_its_first(tmp_path):
    Run(tmp_path, [80.0, 70.0, 90.0]).run()
    (tmp_path / "best" / "notes.txt").write_text("mine")
    left = _files(tmp_path)
    with pytest.raises(Killed):  # twice before the first evaluation that gives a value
        Run(tmp_path, [math.nan, 1.0]).run(dies_after=-1)
    with pytest.raises(Killed):
        Run(tmp_path, [math.nan, 1.0]).run(dies_after=0)
    assert _kept(tmp_path) == [(90.0, 2), (80.0, 0), (70.0, 1)] and _files(tmp_path) == left
    with pytest.raises(Killed):
        Run(tmp_path, [math.nan, 1.0, 2.0]).run(dies_after=1)
    assert _kept(tmp_path) == [(1.0, 1)]
    assert _files(tmp_path) == {"best.json", "model_0000001.pth", "notes.txt"}


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("first", [2, 3])
def test_killed_at_its_first_checkpoint_no_run_has_the_others_weights(
    tmp_path, monkeypatch, number, first
):
    Run(tmp_path, [0.0, 50.0, 60.0, 0.0], max_to_keep=2).run()
    os.remove(tmp_path / "last_checkpoint")
    values = [math.nan] * first + [7.0, 8.0, 9.0]  # the file of iteration 2 is there already
    run = Run(tmp_path, values, max_to_keep=2)
    run.run_step = lambda: run.checkpointer.model.weight.data.fill_(100 + run.iter)
    with monkeypatch.context() as patch:
        _die_at(patch, number)
        with pytest.raises(Killed):
            run.run()
    ranking = read_ranking(tmp_path / "best")
    assert len({entry["run_id"] for entry in ranking}) <= 1
    for entry in ranking:
        weights = torch.load(tmp_path / "best" / entry["file"], weights_only=True)["model"]
        is_old = entry["value"] >= 50.0
        assert weights["weight"].item() == entry["iteration"] + (0 if is_old else 100)
    if number <= first - 1:  # a name that is not there yet can be written before the ranking
        assert [entry["value"] for entry in ranking] == [60.0, 50.0]


@pytest.mark.parametrize("content", ["[", "[1]", '[["file", "metric", "value"]]'])
def test_an_unreadable_ranking_is_told_of_and_written_anew(tmp_path, caplog, content):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text(content)
    Run(tmp_path, [1.0, 2.0]).run()
    assert (
        "The earlier ranking of checkpoints is ignored: " in caplog.text
        and "found no ranking" in caplog.text
    )
    assert _kept(tmp_path) == [(2.0, 1), (1.0, 0)]


def test_fewer_or_another_metric_from_now_on(tmp_path):
    values = [1.0, 3.0, 2.0, 4.0]
    with pytest.raises(Killed):
        Run(tmp_path, values).run(dies_after=2)
    with pytest.raises(Killed):
        Run(tmp_path, values, max_to_keep=1).run(resume=True, dies_after=2)
    assert _kept(tmp_path) == [(3.0, 1)] and len(_files(tmp_path)) == 2
    Run(tmp_path, values, metric="bbox/AP1").run(resume=True)  # which no evaluation gives
    assert _kept(tmp_path) == [(3.0, 1)]
    Run(tmp_path, values, metric="bbox/AP10").run(resume=True)
    assert _kept(tmp_path, "bbox/AP10") == [(-4.0, 3)] and len(_files(tmp_path)) == 2


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    Run(tmp_path, [1.0, 2.0]).run()
    assert not (tmp_path / "best").exists()


def test_a_training_keeps_them_by_the_metric_of_the_best(tiny_phantom, tmp_path):
    options = {"TEST__EVAL_PERIOD": 1, "TEST__NUM_BEST_CHECKPOINTS": 3, "SOLVER__MAX_ITER": 3}
    loss = {"SOLVER__PATIENCE_METRIC": "validation_loss", "TEST__LOSS_PERIOD": 1}
    train_net.main(tiny_args(tmp_path, **options, **loss))
    ranking = read_ranking(tmp_path / "best")
    values = [entry["value"] for entry in ranking]
    assert {entry["iteration"] for entry in ranking} == {0, 1, 2} and values == sorted(values)
    assert {entry["metric"] for entry in ranking} == {"validation_loss"}
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["best"]["value"] == ranking[0]["value"]
    assert best["best"]["run_id"] == ranking[0]["run_id"]
    files = checkpoint_files([str(tmp_path / "best"), "other.pth"])
    assert files == [*(str(tmp_path / "best" / e["file"]) for e in ranking), "other.pth"]
    weights = torch.load(files[0], weights_only=True)["model"]
    for name, weight in best["model"].items():
        assert torch.equal(weights[name], weight)


ENTRY = '[{"file": "a.pth", "metric": "b", "value": 5.5, "iteration": 7, "run_id": "c"}]'


@pytest.mark.parametrize(
    "content, error, message",
    [
        (None, FileNotFoundError, "best.json: no such file"),
        ("[", ValueError, "found no ranking"),
        ('{"file": 1}', ValueError, "found no ranking"),
        ("[1]", ValueError, "found no ranking"),
        ('[{"file": "model_0000001.pth"}]', ValueError, "found no ranking"),
        ("[" * 10_000, ValueError, r"best.json: found no ranking \(found no readable JSON"),
        (
            ENTRY.replace("5.5", "NaN"),
            ValueError,
            r"no ranking \(found no readable JSON \(invalid number NaN",
        ),
        (ENTRY.replace("5.5", '"x"'), ValueError, r"no ranking \(entry 0: value: found 'x', exp"),
        (ENTRY.replace("7", "[7]"), ValueError, r"no ranking \(entry 0: iteration: found \[7\]"),
        ("[]", ValueError, "found no checkpoint in its best.json"),
    ],
)
def test_folders_that_are_none(tmp_path, content, error, message):
    if content is not None:
        (tmp_path / "best.json").write_text(content)
    with pytest.raises(error, match=message):
        checkpoint_files([str(tmp_path)])
