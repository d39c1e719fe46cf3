from lesion_d2.scans.stacking import plan_slices, stack_slices

import numpy as np
import pytest


def plan_of(positions, **options):
    labels = [f"s{index}" for index in range(len(positions))]
    return plan_slices(np.array(positions, float), labels, source="series", **options)


def test_slices_that_are_even_as_written_stay_as_they_are():
    positions = np.round(1.25 * np.arange(200) / 3, 2)
    plan = plan_of(positions)
    assert plan.slices == tuple((n, n, 0.0) for n in range(200)) and not plan.messages
    assert plan.spacing == pytest.approx(1.25 / 3, abs=1e-4)


@pytest.mark.parametrize(
    "positions",
    [
        [0, 2, 4, 6, 10, 12, 14],  # one is missing
        [0, 2, 3.5, 6, 8.4, 10],
        [0, 1, 2, 3, 4, 5, 7, 9, 11],  # the table moved faster
        [0, 2, 2.5, 4, 6, 6.7, 8],  # some lie between
    ],
)
def test_uneven_slices_are_interpolated(positions):
    """Against NumPy's interpolation of every pixel."""
    slices = np.random.default_rng(0).integers(-1000, 1000, (len(positions), 3, 4)).astype(np.int16)
    plan = plan_of(positions)
    volume = stack_slices(iter(slices), plan, (3, 4))
    wanted = positions[0] + plan.spacing * np.arange(len(volume))
    assert plan.spacing == pytest.approx(np.median(np.diff(positions)))
    assert positions[-1] - plan.spacing < wanted[-1] <= positions[-1] + 0.1
    for y, x in np.ndindex(3, 4):
        expected = np.interp(wanted, positions, slices[:, y, x])
        assert np.abs(volume[:, y, x] - expected).max() <= 0.51
    nearest = [np.abs(np.subtract(positions, place)).min() for place in wanted]
    chosen = np.abs(np.take(positions, plan.nearest()) - wanted)
    np.testing.assert_allclose(chosen, nearest, atol=1e-9)
    assert f"{len(positions)} of them were interpolated to {len(volume)}" in plan.messages[0]


def test_missing_slices_are_named():
    plan = plan_of([0, 2, 4, 8, 10])
    assert plan.messages[1] == "slices are missing between s2 and s3"
    assert plan.slices[3] == (2, 3, 0.5) and plan.slices[4] == (3, 3, 0.0)


def test_gaps_beyond_twice_the_spacing():
    positions = [0, 2, 4, 11, 13]
    with pytest.raises(ValueError) as error:
        plan_of(positions)
    assert str(error.value).startswith(
        "series: found a gap of 7 mm between s2 and s3, expected at most twice the 2 mm"
    )
    plan = plan_of(positions, allow_gaps=True)
    assert [pair[:2] for pair in plan.slices] == [(0, 0), (1, 1), (2, 2), *[(2, 3)] * 3, (3, 4)]


@pytest.mark.parametrize(
    ("positions", "options", "message"),
    [
        ([0], {}, "found one slice and no thickness"),
        ([0], {"spacing": 0.0}, "found slices 0 mm apart"),
        ([0, 1e3], {}, "found slices 1000 mm apart"),
        ([0, 0.02, 1e4], {"allow_gaps": True, "spacing": 0.02}, "found 500001 slices"),
    ],
)
def test_what_is_no_stack(positions, options, message):
    with pytest.raises(ValueError, match=message):
        plan_of(positions, **options)


def test_two_slices_are_in_memory():
    alive = []

    class Counted(np.ndarray):
        def __del__(self):
            alive.remove(id(self))

    def slices():
        for index in range(20):
            hu = np.full((2, 2), index, np.int16).view(Counted)
            alive.append(id(hu))
            assert len(alive) <= 4  # two, the one that comes, and the loop's own
            yield hu

    volume = stack_slices(slices(), plan_of(np.delete(np.arange(21.0), 7)), (2, 2))
    assert volume[:, 0, 0].tolist() == [*range(7), 6, *range(7, 20)]  # 6.5 is rounded to even
