"""Distractors: like lesions on the key slice, and going on where lesions end."""

import json
from dataclasses import replace
from pathlib import Path

from lesion_d2.data.phantoms import phantom
from lesion_d2.data.phantoms.anatomy import sample_body
from lesion_d2.data.phantoms.lesions import sample_lesion
from lesion_d2.data.phantoms.phantom import MAX_DRIFT, PhantomOptions, Series, write_phantom

import numpy as np
import pytest
from deeplesion_rows import read_rows
from pycocotools import mask as coco_mask

OPTIONS = PhantomOptions(size=96, extent_mm=10.0, median_diameter=18.0, distractors=3.0)


def make_series(seed: int, options: PhantomOptions = OPTIONS) -> Series:
    rng = np.random.default_rng([seed, 1])
    return Series(rng, sample_body(rng), options)


@pytest.fixture(scope="module")
def crowded() -> dict[int, Series]:
    """A series with distractors for every spacing."""
    found: dict[int, Series] = {}
    seeds = iter(range(60))
    while len(found) < 3:
        series = make_series(next(seeds))
        if len(series.distractors) > 1:
            found.setdefault(series.spacing, series)
    return found


def indices(series: Series) -> range:
    return range(series.key - series.reach, series.key + series.reach + 1)


def cover(series: Series, thing, index: int) -> np.ndarray:
    """Share of every pixel of a slice that a lesion or a distractor fills."""
    return np.mean([thing.paint(canvas) for canvas in series.paint(index)], axis=0)


# --- without them ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(root, num_patients=3, size=64, seed=3, workers=1)
    return root


def test_sets_without_them_are_those_from_before(plain):
    """Key slices and types as they were drawn before there were distractors."""
    found = [(row["File_name"][7:16], row["Coarse_lesion_type"]) for row in read_rows(plain)]
    expected = (
        "01_01_296:2 02_01_015:3 03_01_050:5 03_01_050:5 04_01_340:6 04_01_340:1 05_01_062:6 "
        "05_01_062:2 01_01_117:5 02_01_129:3 03_01_051:5 03_01_051:5 03_01_051:7 01_01_315:4 "
        "02_01_043:5 03_01_300:4"
    )
    assert " ".join(map(":".join, found)) == expected

    # Their options are stored as before, so a set from before counts as complete.
    stored = json.loads((plain / "phantom.json").read_text())
    assert list(stored) == [
        "num_patients",
        "size",
        "seed",
        "extent_mm",
        "median_diameter",
        "mottle_hu",
        "format_version",
    ]
    assert not write_phantom(plain, num_patients=3, size=64, seed=3, distractors=0, workers=1)


def test_sets_with_and_without_them_are_not_mistaken(plain, tmp_path):
    options = {"num_patients": 3, "size": 64, "seed": 3, "workers": 1}
    with pytest.raises(FileExistsError, match=r"\(distractors 0\.0 instead of 2\.0\).*--overwrite"):
        write_phantom(plain, **options, distractors=2)
    assert write_phantom(tmp_path / "phantom", **options, distractors=2)
    assert json.loads((tmp_path / "phantom" / "phantom.json").read_text())["distractors"] == 2.0
    assert not write_phantom(tmp_path / "phantom", **options, distractors=2)
    with pytest.raises(FileExistsError, match=r"\(distractors 2\.0 instead of 0\.0\)"):
        write_phantom(tmp_path / "phantom", **options)


# --- on the key slice -----------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [1, 2, 5])
def test_on_the_key_slice_they_are_painted_as_lesions(crowded, spacing):
    series = crowded[spacing]
    for distractor in series.distractors:
        for ours, theirs in zip(*(series.paint(series.key) for _ in range(2)), strict=True):
            np.testing.assert_array_equal(distractor.paint(ours), distractor.lesion.paint(theirs))
            np.testing.assert_array_equal(ours.hu, theirs.hu)


def test_they_are_drawn_as_lesions_are(monkeypatch):
    """Size, type, contrast and mottle have the same means, and the order does not matter."""
    drawn = []

    def sample_and_note(*args, **kwargs):
        drawn.append(sample_lesion(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(phantom, "sample_lesion", sample_and_note)
    options = replace(OPTIONS, size=64, distractors=2.0)
    lesions, others, is_first, shares = [], [], [], []
    num_series = 60
    for seed in range(num_series):
        drawn.clear()
        series = make_series(seed, options)
        distractors = [d.lesion for d in series.distractors]
        lesions += series.lesions
        others += distractors
        ours, theirs = {*map(id, series.lesions)}, {*map(id, distractors)}
        order = [id(x) in ours for x in drawn if id(x) in ours | theirs]
        is_first.append(order[0])
        shares.append(np.mean(order))
    assert 1.6 < len(others) / num_series < 2.4  # few are left out for want of room
    measures = [
        lambda x: np.log(x.radius),
        lambda x: x.hu,
        lambda x: x.mottle_hu,
        lambda x: x.relative,
        *(lambda x, t=t: x.kind.coarse_type == t for t in range(1, 9)),
    ]
    for measure in measures:
        a, b = (np.array([measure(x) for x in group], float) for group in (lesions, others))
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) <= 3 * error  # 0 and 0 of a type that none has
    # The first to get its place is a lesion no more often than any other.
    assert np.mean(is_first) == pytest.approx(np.mean(shares), abs=3 * 0.5 / np.sqrt(num_series))


# --- across slices --------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [1, 2, 5])
def test_they_go_on_where_lesions_end(crowded, spacing):
    series = crowded[spacing]
    grid = np.stack(np.broadcast_arrays(series.x, series.y[:, None]))
    for distractor in series.distractors:
        assert np.abs(distractor.drift).max() <= MAX_DRIFT
        at_key = cover(series, distractor, series.key)
        middle = (grid * at_key).sum(axis=(1, 2)) / at_key.sum()
        for index in indices(series):
            here = cover(series, distractor, index)
            assert here.sum() == pytest.approx(at_key.sum(), rel=0.1)  # sampled by pixels
            moved = (grid * here).sum(axis=(1, 2)) / here.sum() - middle
            aside = np.array(distractor.drift) * (index - series.key) * spacing
            assert moved == pytest.approx(aside, abs=0.25 * series.pixel)
    for lesion in series.lesions:
        reach = int(np.ceil(lesion.reach / spacing)) + int(np.ceil(0.3 * lesion.radius / spacing))
        for index in (series.key - reach - 1, series.key + reach + 1):
            assert cover(series, lesion, index).sum() == 0


def test_their_mottle_changes_with_height_as_in_lesions(crowded):
    series = crowded[1]  # one height a slice
    for distractor in series.distractors:
        lesion = distractor.lesion
        for index in (series.key - 6, series.key, series.key + 9):
            (canvas,) = series.paint(index)
            away = float(index - series.key)
            x, y = (canvas.x - distractor.drift[0] * away, canvas.y - distractor.drift[1] * away)
            base = canvas.hu.copy()
            depth = -lesion.inside(x, y[:, None], float(series.key))
            middle = np.unravel_index(depth.argmax(), depth.shape)
            expected = lesion.hu + lesion.mottle_hu * lesion.mottle(x, y, float(index))[middle]
            if lesion.relative:
                expected += canvas.tissues["liver" if lesion.kind.coarse_type == 4 else "medulla"]
            share = np.clip((depth[middle] / lesion.radius - 0.35) / 0.3, 0, 1)
            expected += lesion.core * share
            assert distractor.paint(canvas)[middle] == 1
            assert canvas.hu[middle] == pytest.approx(expected, abs=0.05)
            assert not np.array_equal(canvas.hu, base)


@pytest.mark.parametrize("spacing", [1, 2, 5])
def test_every_slice_shows_them_and_no_row_names_them(crowded, spacing, tmp_path):
    series = crowded[spacing]
    slices = series.write(np.random.default_rng(0), tmp_path / "series")
    rows = list(series.describe("000001_01_01", slices))
    assert len(rows) == len(series.lesions)
    empty = replace_distractors(series)
    for index in indices(series):
        shown, masks = series.render(index, series.lesions)
        change = np.abs(shown - empty.render(index, series.lesions)[0])
        for distractor in series.distractors:
            place = cover(series, distractor, index) > 0.5
            assert change[place].mean() > 5
            assert not (place & np.any(masks, axis=0)).any()
            for _, rles in rows:
                if index in rles:
                    assert not (place & (coco_mask.decode(rles[index]) > 0)).any()


def replace_distractors(series: Series) -> Series:
    """The same series without its distractors."""
    empty = Series.__new__(Series)
    empty.__dict__.update(series.__dict__, distractors=[])
    return empty
