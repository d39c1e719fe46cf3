import json
import weakref

from lesion_d2.engine import LesionCheckpointer, RecentCheckpointer, ResumableBestCheckpointer
from lesion_d2.engine.resuming import rewind_metrics

import pytest
import torch
from detectron2.engine import TrainerBase, hooks
from detectron2.utils.events import EventStorage, JSONWriter
from torch import nn


class _Evaluated(TrainerBase):
    """Trains nothing; the evaluations give the values in turn.

    Detectron2 evaluates after the end of training in place of after the last iteration.
    """

    def __init__(self, folder, values, metric="bbox/AP50", save_period=1):
        super().__init__()
        model = nn.Linear(1, 1)
        self.checkpointer = LesionCheckpointer(model, str(folder), trainer=weakref.proxy(self))
        self.values = values
        self.best = ResumableBestCheckpointer(1, self.checkpointer, metric)
        self.register_hooks(
            [
                hooks.PeriodicCheckpointer(self.checkpointer, save_period),
                hooks.EvalHook(1, self._evaluate),
                self.best,
            ]
        )

    def _evaluate(self):
        return {"bbox": {"AP50": self.values[min(self.storage.iter, len(self.values) - 1)]}}

    def run_step(self):
        with torch.no_grad():
            self.checkpointer.model.weight.fill_(self.iter)

    def resume(self):
        self.checkpointer.resume_or_load("", resume=True)
        self.start_iter = self.iter + 1


def _best(folder) -> tuple[float, int]:
    """The best value, and the iteration whose weights were kept."""
    content = torch.load(folder / "model_best.pth", weights_only=True)
    return content["best"]["value"], int(content["model"]["weight"].item())


def _train_until(trainer, dies_after):
    """Train, and stop after an iteration as ``kill -9`` does: nothing runs after it."""

    class Killed(Exception):
        pass

    def run_step(step=trainer.run_step):
        if trainer.iter > dies_after:
            raise Killed
        step()

    trainer.run_step = run_step
    trainer.after_train = lambda: None
    with pytest.raises(Killed):
        trainer.train(trainer.start_iter, len(trainer.values))


@pytest.mark.parametrize("save_period", [1, 3])
@pytest.mark.parametrize("values", [[5, 9, 7, 8, 6, 4], [5, 9, 7, 8, 10, 4], [5, 6, 7, 8, 9, 10]])
@pytest.mark.parametrize("dies_after", [2, 3, 4])
def test_the_best_of_a_resumed_run_is_the_best_of_the_whole_run(
    tmp_path, values, dies_after, save_period
):
    values = [float(v) for v in values]
    _train_until(_Evaluated(tmp_path, values, save_period=save_period), dies_after)
    resumed = _Evaluated(tmp_path, values, save_period=save_period)
    resumed.resume()
    assert resumed.start_iter == (dies_after + 1) // save_period * save_period
    resumed.train(resumed.start_iter, len(values))
    best = max(values)
    assert _best(tmp_path) == (best, values.index(best))
    assert resumed.best.best_metric == best


def test_the_best_checkpoint_of_another_run_does_not_count(tmp_path):
    _Evaluated(tmp_path, [90.0, 90.0]).train(0, 2)
    second = _Evaluated(tmp_path, [10.0, 20.0, 15.0, 0.0])
    _train_until(second, 0)
    assert _best(tmp_path) == (10.0, 0)
    third = _Evaluated(tmp_path, [10.0, 20.0, 15.0, 0.0])
    third.resume()
    third.train(third.start_iter, 4)
    assert _best(tmp_path) == (20.0, 1)


def test_the_best_stays_the_best_where_a_resumed_run_writes_another_format(tmp_path):
    values = [5.0, 9.0, 7.0, 8.0, 10.0]
    _train_until(_Evaluated(tmp_path, values[:4]), 2)
    for end, best in ((4, "model_best.pth"), (5, "model_best.safetensors")):
        resumed = _Evaluated(tmp_path, values[:end])
        resumed.checkpointer.file_format = "safetensors"
        resumed.resume()
        resumed.train(resumed.start_iter, end)
        assert [path.name for path in tmp_path.glob("model_best.*")] == [best]
        assert resumed.best.best_metric == max(values[:end])
    assert [path.name for path in tmp_path.glob("model_final.*")] == ["model_final.safetensors"]


def test_a_metric_that_is_not_a_number_is_never_the_best(tmp_path):
    nan = float("nan")
    _Evaluated(tmp_path, [nan, 3.0, nan, 2.0]).train(0, 4)
    assert _best(tmp_path) == (3.0, 1)


def test_a_metric_that_is_not_computed_is_reported(tmp_path, caplog):
    _Evaluated(tmp_path, [1.0, 1.0], metric="bbox/AP51").train(0, 2)
    assert not (tmp_path / "model_best.pth").exists()
    assert "bbox/AP51" in caplog.text and "bbox/AP50" in caplog.text


def test_resumed_metrics_go_on_where_the_checkpoint_was_written(tmp_path):
    lines = [
        {"iteration": 3, "total_loss": 1.0},
        {"iteration": 4, "bbox/AP50": 1.0},  # after the last iteration, which was 3
        {"iteration": 4, "total_loss": 1.0},
        {"iteration": 7, "total_loss": 1.0},
    ]
    file = tmp_path / "metrics.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 2, "tot')
    inode = file.stat().st_ino
    rewind_metrics(str(file), 4)
    assert file.stat().st_ino == inode
    assert [json.loads(line) for line in file.read_text().splitlines()] == lines[:2]
    rewind_metrics(str(tmp_path / "none.json"), 4)  # a run that wrote no metrics yet


def test_the_writer_that_is_open_goes_on_in_the_rewound_metrics(tmp_path):
    file = tmp_path / "metrics.json"
    old = [{"iteration": i, "total_loss": float(i)} for i in (1, 3, 2, 4)]
    file.write_text("".join(json.dumps(line) + "\n" for line in old))
    writer = JSONWriter(str(file))
    rewind_metrics(str(file), 3)
    with EventStorage(3) as storage:
        storage.put_scalar("total_loss", 7.0)
        writer.write()
    writer.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [old[0], old[2], {"iteration": 3, "total_loss": 7.0}]


class _Saved(TrainerBase):
    """Trains nothing; writes a checkpoint every other iteration."""

    def __init__(self, folder, max_to_keep):
        super().__init__()
        self.checkpointer = LesionCheckpointer(
            nn.Linear(1, 1), str(folder), trainer=weakref.proxy(self)
        )
        self.register_hooks([RecentCheckpointer(self.checkpointer, 2, max_to_keep=max_to_keep)])

    def run_step(self):
        pass

    def resume(self):
        self.checkpointer.resume_or_load("", resume=True)
        return self.iter + 1


def _periodic(folder) -> list[int]:
    return sorted(int(path.stem[6:]) for path in folder.glob("model_0*.pth"))


def test_the_last_checkpoints_are_kept(tmp_path):
    others = ("model_best.pth", "model_0000000.pth", "best/model_0000001.pth", "model_notes.pth")
    (tmp_path / "best").mkdir()
    for name in others:  # of another run, or not of the period
        (tmp_path / name).write_bytes(b"")
    _Saved(tmp_path, 2).train(0, 9)
    assert _periodic(tmp_path) == [0, 5, 7]
    assert (tmp_path / "model_final.pth").is_file()
    assert all((tmp_path / name).is_file() for name in others)


def test_all_checkpoints_are_kept_where_none_is_to_go(tmp_path):
    _Saved(tmp_path, 0).train(0, 9)
    assert _periodic(tmp_path) == [1, 3, 5, 7]


def test_a_run_killed_at_any_write_can_be_resumed_and_keeps_as_many(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    _Saved(tmp_path, 2).train(0, 5)
    save = LesionCheckpointer.tag_last_checkpoint
    for iteration, there in ((5, [1, 3, 5]), (7, [3, 5, 7])):  # whole, and not yet the last one
        killed = _Saved(tmp_path, 2)
        (tmp_path / "last_checkpoint").write_text(f"model_{iteration - 2:07d}.pth")
        start = killed.resume()
        assert start == iteration - 1

        def die(self, name):
            raise Killed

        monkeypatch.setattr(LesionCheckpointer, "tag_last_checkpoint", die)
        with pytest.raises(Killed):
            killed.train(start, 20)
        monkeypatch.setattr(LesionCheckpointer, "tag_last_checkpoint", save)
        assert _periodic(tmp_path) == there
        assert (tmp_path / (tmp_path / "last_checkpoint").read_text()).is_file()
        resumed = _Saved(tmp_path, 2)
        resumed.train(resumed.resume(), iteration + 2)
        assert _periodic(tmp_path) == there[1:]


def test_checkpoints_of_a_resumed_run_go_when_their_time_has_come(tmp_path):
    _Saved(tmp_path, 2).train(0, 6)
    resumed = _Saved(tmp_path, 2)
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    resumed.train(resumed.resume(), 9)
    assert _periodic(tmp_path) == [5, 7]
