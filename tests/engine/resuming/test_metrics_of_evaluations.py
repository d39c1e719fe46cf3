"""What an evaluation gave is in metrics.json at once, and once."""

import errno
import json

from lesion_d2.engine import CatchUpHook
from lesion_d2.engine.resuming import EvaluationWriter, rewind_metrics

import pytest
from detectron2.engine import TrainerBase, hooks
from detectron2.utils.events import EventWriter, JSONWriter


class Killed(Exception):
    pass


class Run(TrainerBase):
    """Trains nothing; its evaluations give ten times the iteration."""

    def __init__(self, file, *, period, dies_before=None):
        super().__init__()
        self.dies_before = dies_before
        late = [hooks.EvalHook(period, lambda: {"m": {"v": 10.0 * self.iter}})]
        writer = EvaluationWriter([JSONWriter(str(file))], [period, 0])
        self.register_hooks([*late, CatchUpHook(period, late), writer])

    def run_step(self):
        if self.iter == self.dies_before:
            self.after_train = lambda: None  # the dead write nothing
            raise Killed
        self.storage.put_scalar("total_loss", float(self.iter))


def values(file, name):
    lines = map(json.loads, file.read_text().splitlines())
    return [(line["iteration"], line[name]) for line in lines if name in line]


@pytest.mark.parametrize("dies_before", [5, 6, 9])
def test_a_kill_loses_no_evaluation_and_a_resumed_run_has_none_twice(tmp_path, dies_before):
    file = tmp_path / "metrics.json"
    run = Run(file, period=2, dies_before=dies_before)
    with pytest.raises(Killed):
        run.train(0, 50)
    assert values(file, "m/v") == [(i, 10.0 * i) for i in range(1, dies_before, 2)]
    rewind_metrics(str(file), 4)  # from a checkpoint after 3, which was evaluated
    Run(file, period=2).train(4, 8)
    assert values(file, "m/v") == [(i, 10.0 * i) for i in (1, 3, 5, 8)]
    assert [i for i, _ in values(file, "total_loss")] == [1, 3, 5, 7]


def test_an_evaluation_that_a_kill_prevented_is_written_by_the_resumed_run(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 1, "m/v": 10.0, "total_loss": 1.0}\n')
    Run(file, period=2).train(4, 7)
    assert values(file, "m/v") == [(1, 10.0), (3, 30.0), (5, 50.0), (7, 70.0)]


def test_lines_that_are_none_are_cut(tmp_path):
    file = tmp_path / "metrics.json"
    good = b'{"iteration": 1, "total_loss": 1.0}\n'
    file.write_bytes(good + b'[1]\n{"iteration": null}\n{}\n\xff\n')
    rewind_metrics(str(file), 3)
    assert file.read_bytes() == good


class _Full(EventWriter):
    def write(self):
        raise OSError(errno.ENOSPC, "of the metrics")


def test_a_disk_that_is_full_for_a_checkpoint_is_told_of_by_its_name(tmp_path):
    runs = [Run(tmp_path / "metrics.json", period=0) for _ in range(2)]
    for run in runs:
        run.register_hooks([EvaluationWriter([_Full()], [])])

    def run_step():
        raise OSError(errno.ENOSPC, "full", "model_final")

    runs[0].run_step = run_step
    with pytest.raises(OSError, match="full: 'model_final'"):
        runs[0].train(0, 2)
    with pytest.raises(OSError, match="of the metrics"):
        runs[1].train(0, 2)
