import json
import logging

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.engine import hooks, training_curves
from lesion_d2.engine.hooks import TrainingCurvesHook, TrainingStopped
from lesion_d2.engine.training_curves import has_curves, plot_training, read_metrics

import numpy as np
import pytest


def write_metrics(folder, entries, end="\n"):
    file = folder / "metrics.json"
    file.write_text("\n".join(map(json.dumps, entries)) + end)
    return file


def losses(*iterations):
    return [{"iteration": i, "total_loss": 1 / (1 + i), "lr": 0.1} for i in iterations]


def test_the_last_value_of_an_iteration_counts(tmp_path):
    entries = [*losses(19, 39), {"iteration": 39, "froc/sens@1": 10.0}]
    entries += [{"iteration": 39, "froc/sens@1": 20.0}, *losses(59)]  # evaluated again
    curves = read_metrics(write_metrics(tmp_path, entries))
    assert [part.tolist() for part in curves["total_loss"]] == [
        [19, 39, 59],
        [1 / 20, 1 / 40, 1 / 60],
    ]
    assert [part.tolist() for part in curves["froc/sens@1"]] == [[39], [20.0]]


def test_a_training_that_began_again_is_drawn_alone(tmp_path):
    """Of one in the same folder before it nothing is left, not even what it has further on."""
    entries = [*losses(19, 39, 59, 79), {"iteration": 79, "froc/sens@1": 10.0}]
    again = [{"iteration": 19, "total_loss": 9.0}, {"iteration": 39, "total_loss": 8.0}]
    curves = read_metrics(write_metrics(tmp_path, entries + again))
    assert [part.tolist() for part in curves["total_loss"]] == [[19, 39], [9.0, 8.0]]
    assert "froc/sens@1" not in curves


def test_a_line_that_a_kill_left_is_none_and_a_damaged_one_is_named(tmp_path):
    file = write_metrics(tmp_path, losses(19, 39), end='\n{"iterat')
    assert read_metrics(file)["total_loss"][0].tolist() == [19, 39]
    for line in ("{", "[]", '{"total_loss": 1}'):
        file.write_text(f'{{"iteration": 1}}\n{line}\n{{"iteration": 2}}\n')
        with pytest.raises(ValueError, match=r"metrics\.json: line 2: found no"):
            read_metrics(file)


@pytest.fixture
def panels(monkeypatch):
    """What is drawn: the panels' labels and the names of their lines, without a figure's file."""
    from contextlib import contextmanager

    from matplotlib.figure import Figure

    drawn = []

    @contextmanager
    def figure_written(file, size):
        figure = Figure(figsize=size)
        yield figure
        drawn.append([(a.get_ylabel(), [x.get_label() for x in a.lines]) for a in figure.axes])

    monkeypatch.setattr(training_curves, "figure_written", figure_written)
    return drawn


def curves_of(*names):
    return {name: (np.array([19, 39]), np.array([2.0, 1.0])) for name in names}


def test_panels_are_losses_precision_and_sensitivity(panels):
    names = ["loss_cls", "total_loss", "validation_loss", "lr", "time", "validation_loss/loss_cls"]
    names += ["froc/sens@16", "froc/sens@2", "froc/mean_sens", "froc_size/under_10mm/sens@2"]
    plot_training(curves_of(*names, "bbox/AP50", "bbox/AP", "bbox/APs"), "a.png")
    assert panels == [
        [
            ("Loss", ["total_loss", "validation_loss", "loss_cls"]),
            ("Average precision (%)", ["bbox/AP", "bbox/AP50"]),
            ("Sensitivity (%)", ["froc/mean_sens", "froc/sens@2", "froc/sens@16"]),
        ]
    ]


def test_of_several_data_sets_only_the_main_metrics_are_drawn(panels):
    names = [f"{s}/{m}" for s in "ab" for m in ("bbox/AP", "bbox/AP50", "froc/mean_sens", "froc/x")]
    plot_training(
        curves_of("total_loss", *names, "a/froc/sens@1", *map("loss_{}".format, range(9))), ""
    )
    (_, parts), precision, sensitivity = panels[0]
    assert len(parts) == 7 and parts[0] == "total_loss"
    assert precision[1] == ["a/bbox/AP", "b/bbox/AP"]
    assert sensitivity[1] == ["a/froc/mean_sens", "b/froc/mean_sens"]


def test_one_loss_is_no_curve(panels):
    curves = {"total_loss": (np.array([3]), np.array([1.0])), **curves_of("bbox/AP")}
    assert not has_curves(curves) and has_curves(curves_of("loss_cls"))
    with pytest.raises(ValueError, match="losses: found fewer than two iterations"):
        plot_training(curves, "a.png")
    assert panels == []


def end(folder, error=None):
    """End a training whose output is in a folder, as ``TrainerBase.train`` does."""
    hook = TrainingCurvesHook(folder)
    if error is None:
        return hook.after_train()
    with pytest.raises(type(error)):
        try:
            raise error
        finally:
            hook.after_train()


def test_the_figure_is_written_at_the_end_of_a_training(tmp_path):
    write_metrics(tmp_path, losses(19, 39))
    end(tmp_path)
    names = ["metrics.json", "training.pdf", "training.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.fixture
def drawn(monkeypatch):
    """What the hook draws."""
    calls = []
    monkeypatch.setattr(hooks, "plot_training", lambda curves, file, title: calls.append(file.name))
    return calls


def test_an_early_end_has_a_figure_and_a_failure_has_none(tmp_path, drawn, monkeypatch):
    write_metrics(tmp_path, losses(19, 39))
    end(tmp_path, TrainingStopped())
    assert drawn == ["training.png"]
    for error in (OSError(), KeyboardInterrupt()):
        end(tmp_path, error)
    monkeypatch.setattr(hooks.comm, "is_main_process", lambda: False)
    end(tmp_path)
    assert drawn == ["training.png"]


def test_a_figure_fails_no_training(tmp_path, drawn, monkeypatch, caplog):
    write_metrics(tmp_path, losses(19))
    end(tmp_path)  # nothing to draw
    assert drawn == [] and not caplog.records
    (tmp_path / "metrics.json").write_text("no JSON\n")
    with caplog.at_level(logging.WARNING):
        end(tmp_path)
        (tmp_path / "metrics.json").unlink()
        end(tmp_path)
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    assert "The curves of the training were not drawn" in caplog.text
