import json
import logging
import math
import random
import shutil

import pytest
import torch
from made_up_run import (
    BASE_RATES,
    FACTOR,
    STEP,
    STEP_FACTOR,
    WARMUP_FACTOR,
    WARMUP_ITERS,
    MadeUpRun,
)

NAN = float("nan")
# 20 and 15 are not better than 20; 21, 20, 19 and 18 not better than 21.
VALUES = [10.0, 20.0, 20.0, 15.0, 21.0, 21.0, 20.0, 19.0, 18.0, 30.0, 31.0]


def _improved(values: list[float], mode: str = "max") -> list[bool]:
    """For every evaluation whether its value is better than all before it."""
    sign = {"max": 1, "min": -1}[mode]
    return [
        math.isfinite(value)
        and all(sign * value > sign * other for other in values[:index] if math.isfinite(other))
        for index, value in enumerate(values)
    ]


def _lowered(improved: list[bool], patience: int) -> list[int]:
    """The evaluations that lower the learning rate: the ``patience`` last ones were no better."""
    lowered = []
    for index in range(patience - 1, len(improved)):
        last = range(index - patience + 1, index + 1)
        if not any(improved[i] or i in lowered for i in last):
            lowered.append(index)
    return lowered


def _stop(improved: list[bool], patience: int) -> int | None:
    """The evaluation that ends the training."""
    for index in range(patience - 1, len(improved)):
        if not any(improved[index - patience + 1 : index + 1]):
            return index
    return None


def _expected_rates(
    improved: list[bool], *, plateau: int, early_stop: int, period: int
) -> dict[int, list[float]]:
    lowered = _lowered(improved, plateau) if plateau else []
    stop = _stop(improved, early_stop) if early_stop else None
    num_iterations = period * len(improved) + 1 if stop is None else period * (stop + 1)
    rates = {}
    for iteration in range(num_iterations):
        scale = FACTOR ** sum(period * (index + 1) <= iteration for index in lowered)
        if iteration < WARMUP_ITERS:
            scale *= WARMUP_FACTOR + (1 - WARMUP_FACTOR) * iteration / WARMUP_ITERS
        elif iteration >= STEP:
            scale *= STEP_FACTOR
        rates[iteration] = [rate * scale for rate in BASE_RATES]
    return rates


def _random_values(seed: int) -> list[float]:
    rng = random.Random(seed)
    return rng.choices([NAN, math.inf, 1.0, 2.0, 2.5, 3.0], [2, 1, 5, 5, 3, 1], k=12)


def test_the_rate_falls_after_two_evaluations_without_a_better_one_and_training_ends_after_four(
    tmp_path,
):
    run = MadeUpRun(tmp_path, VALUES).run()
    assert list(run.rates) == list(range(9))
    factors = [rates[1] / rates[0] for rates in run.rates.values()]
    assert factors == pytest.approx([2.0] * 9)
    # Warmup up to iteration 3, then the plateaus after the evaluations 3, 6 (and 8).
    expected = [0.25, 0.4375, 0.625, 0.8125, 0.2, 0.2, 0.2, 0.04, 0.04]
    assert [rates[0] for rates in run.rates.values()] == pytest.approx(expected)
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([0.004, 0.008])


@pytest.mark.parametrize("plateau, early_stop", [(1, 0), (2, 0), (0, 1), (2, 4), (3, 3), (4, 2)])
@pytest.mark.parametrize("period, optimizer", [(1, "SGD"), (2, "Adam"), (3, "AdamW")])
def test_made_up_values_against_the_obvious_reference(
    tmp_path, caplog, plateau, early_stop, period, optimizer
):
    patience = {"plateau": plateau, "early_stop": early_stop, "period": period}
    for seed in range(8):
        values = _random_values(seed)
        run = MadeUpRun(tmp_path / str(seed), values, optimizer=optimizer, **patience).run()
        expected = _expected_rates(_improved(values), **patience)
        assert list(run.rates) == list(expected), values
        for iteration, rates in expected.items():
            assert run.rates[iteration] == pytest.approx(rates, rel=1e-12), (values, iteration)
    # The last iteration has no evaluation of its own.
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_less_can_be_better(tmp_path):
    patience = {"plateau": 2, "early_stop": 3, "period": 1}
    values = [5.0, 6.0, NAN, 4.0, 3.0, 3.0, 7.0, 2.0, 2.0, 2.0, 9.0, 1.0]
    run = MadeUpRun(tmp_path, values, mode="min", **patience).run()
    expected = _expected_rates(_improved(values, "min"), **patience)
    assert len(expected) == 11
    assert list(run.rates.values()) == [pytest.approx(rates) for rates in expected.values()]


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("values", [VALUES, [NAN, 3.0, NAN, 2.0, NAN], [1.0, 2.0, 1.0, 1.0, 3.0]])
def test_a_run_resumed_from_any_checkpoint_goes_on_as_if_it_had_not_ended(tmp_path, values, period):
    whole = MadeUpRun(tmp_path / "whole", values, period=period, saves=True).run()
    checkpoints = sorted((tmp_path / "whole").glob("model_0*.pth"))
    assert len(checkpoints) == len(whole.rates)
    for iteration, checkpoint in enumerate(checkpoints):
        resumed = MadeUpRun(_folder_with(tmp_path, checkpoint), values, period=period)
        resumed.run(resume=True)
        assert resumed.rates == {i: r for i, r in whole.rates.items() if i > iteration}
        assert resumed.iter == whole.iter or iteration == whole.iter - 1
        assert _states(resumed) == _states(whole)


def _folder_with(tmp_path, checkpoint):
    folder = tmp_path / f"resumed_{checkpoint.stem}"
    folder.mkdir()
    shutil.copy(checkpoint, folder)
    (folder / "last_checkpoint").write_text(checkpoint.name)
    return folder


def _states(run: MadeUpRun) -> list[dict]:
    return [
        *(hook.state_dict() for hook in run.late),
        run.scheduler.state_dict(),
        run.optimizer.state_dict(),
    ]


@pytest.mark.parametrize("num_last", [1, 2, 5])
def test_a_run_that_stopped_early_is_done(tmp_path, caplog, num_last):
    values = [5.0, 4.0, 4.0, 4.0, 4.0]
    stopped = MadeUpRun(tmp_path, values, num_last=num_last).run()
    assert list(stopped.rates) == list(range(5))
    assert stopped.num_evaluations == 5  # none after the end
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == final["trainer"]["iteration"] == 4
    assert "Exception" not in caplog.text

    with caplog.at_level(logging.INFO, logger="lesion_d2"):
        caplog.clear()
        resumed = MadeUpRun(tmp_path, values, num_last=num_last).run(resume=True)
    assert resumed.rates == {}
    assert resumed.num_evaluations == 1
    said = [line for line in caplog.messages if line.startswith("Training ends early")]
    assert said == [
        "Training ends early, after iteration 4: bbox/AP50 was not better than 5.00000 "
        "in 4 evaluations"
    ]
    assert _states(resumed) == _states(stopped)
    again = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert json.dumps(again["trainer"]) == json.dumps(final["trainer"])


@pytest.mark.parametrize("early_stop", [4, 0])
def test_a_run_that_stopped_early_goes_on_with_more_patience(tmp_path, early_stop):
    values = [5.0, 4.0, 4.0, 4.0, 6.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    whole = MadeUpRun(tmp_path / "whole", values, early_stop=early_stop).run()
    MadeUpRun(tmp_path, values, early_stop=3).run()
    resumed = MadeUpRun(tmp_path, values, early_stop=early_stop).run(resume=True)
    assert resumed.rates == {i: r for i, r in whole.rates.items() if i > 3}
    assert len(resumed.rates) == (5 if early_stop else 7)


def test_another_metric_is_counted_anew(tmp_path):
    values = [9.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0]
    MadeUpRun(tmp_path, values, early_stop=1).run()
    resumed = MadeUpRun(tmp_path, values, early_stop=2, metric="froc/mean").run(resume=True)
    assert list(resumed.rates) == [2, 3, 4, 5]
    assert resumed.late[-1].state_dict()["best"] == 3.0


def test_a_metric_that_is_not_given_is_told_of_once_and_not_counted(tmp_path, caplog):
    # None: other results only. The two values before count, though the storage still has them.
    run = MadeUpRun(tmp_path, [2.0, 1.0, None, None, None, None, 1.0, 3.0, 1.0]).run()
    assert max(run.rates) == 9
    rates = [rates[0] for rates in run.rates.values()]
    assert rates[4:7] == [1.0] * 3 and rates[7] == pytest.approx(0.2)
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warned) == 2  # both hooks
    assert warned[0] == (
        "PlateauHook does not count: the evaluation has no TEST.BEST_METRIC 'bbox/AP50', but "
        "['bbox/other']"
    )
