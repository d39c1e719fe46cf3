from collections import Counter
from dataclasses import replace
from itertools import chain

from lesion_d2.data.volume_set.form import Lesion, Volume, VolumeSet
from lesion_d2.data.volume_set.splits import (
    complete_splits,
    describe_strata,
    imbalance,
    make_folds,
    split_patients,
)

import numpy as np
import pytest

SHARES = np.array([0.6, 0.2, 0.2])


def _volume(name: str, patient: str, lesions, spacing=(0.7, 0.7, 5.0)) -> Volume:
    made = tuple(
        Lesion(i, category, (10.0, 10.0, 0.0, 10.0 + side, 12.0, 0.0), ignore=category < 0)
        for i, (category, side) in enumerate(lesions, start=1)
    )
    return Volume(name, patient, f"images/{name}.b2nd", (1, 512, 512), spacing, lesions=made)


def _skewed(num_patients: int = 60, seed: int = 0, **others) -> VolumeSet:
    """A rare class, sizes over decades, some patients with most lesions, a third with none."""
    rng, volumes = np.random.default_rng(seed), []
    for i in range(num_patients):
        number = 0 if i % 3 == 0 else int(rng.geometric(0.25))
        lesions = [(int(rng.random() < 0.15), float(rng.lognormal(2, 1))) for _ in range(number)]
        volumes.append(_volume(f"v{i}", f"p{i:02}", lesions, **others))
        if i % 5 == 0:
            volumes.append(_volume(f"w{i}", f"p{i:02}", lesions[:1], **others))
    return VolumeSet(("common", "rare"), tuple(volumes))


def _parts(volume_set: VolumeSet, splits: dict) -> np.ndarray:
    patients = sorted({volume.patient for volume in volume_set.volumes})
    part_of = {p: i for i, names in enumerate(splits.values()) for p in names}
    return np.array([part_of[patient] for patient in patients])


def test_each_patient_is_in_one_split_and_in_the_test_part_of_one_fold():
    volume_set = _skewed()
    patients = sorted({volume.patient for volume in volume_set.volumes})
    assert sorted(chain(*split_patients(volume_set).values())) == patients
    folds = make_folds(volume_set, 5)
    for fold in folds:
        assert sorted(chain(*fold.values())) == patients
        assert {split: len(names) for split, names in fold.items()} == {
            "train": 36,
            "val": 12,
            "test": 12,
        }
    for split in ("test", "val"):  # with 60/20/20
        assert sorted(chain(*(fold[split] for fold in folds))) == patients


@pytest.mark.parametrize(
    ("num_folds", "shares"), [(2, (60, 20, 20)), (3, (2, 1, 1)), (7, (5, 2, 9))]
)
def test_other_numbers_of_folds_and_shares(num_folds, shares):
    volume_set = _skewed(41)
    patients = sorted({volume.patient for volume in volume_set.volumes})
    folds = make_folds(volume_set, num_folds, shares)
    assert sorted(chain(*(fold["test"] for fold in folds))) == patients
    train, val, _ = shares
    for fold in folds:
        assert sorted(chain(*fold.values())) == patients
        assert abs(len(fold["test"]) - 41 / num_folds) < 1
        wanted = (41 - len(fold["test"])) * val / (train + val)
        assert abs(len(fold["val"]) - wanted) < 2


def test_strata_are_counted_as_by_hand():
    lesions = {"a": [(0, 10), (0, 20), (0, 30), (1, 5)], "b": [(0, 40), (0, 50), (0, 60)], "c": []}
    volumes = [_volume(name, name, found) for name, found in lesions.items()]
    ignored = replace(volumes[2], lesions=(Lesion(9, 0, (1, 1, 0, 9, 9, 0), ignore=True),))
    names, counts = describe_strata(VolumeSet(("x", "y"), (*volumes[:2], ignored)))
    assert names[:4] == [
        "patients",
        "patients without a lesion",
        "small lesions of x",
        "middle lesions of x",
    ]
    assert counts[:, :5].tolist() == [[1, 0, 2, 1, 0], [1, 0, 0, 1, 2], [1, 1, 0, 0, 0]]
    assert counts[:, 5:].sum(axis=1).tolist() == [1, 0, 0]


def test_sizes_are_mm_where_every_volume_has_its_spacing():
    fine = _volume("a", "a", [(0, 40.0)], spacing=(0.1, 0.1, 1.0))
    coarse = [_volume("b", "b", [(0, 20.0)]), _volume("c", "c", [(0, 30.0)])]
    small = [0, 0, 1, 0, 0]
    _, counts = describe_strata(VolumeSet(("x",), (fine, *coarse)))
    assert counts[0].tolist() == [1, *small[1:]]
    unknown = replace(coarse[1], spacing=None)
    _, counts = describe_strata(VolumeSet(("x",), (fine, coarse[0], unknown)))
    assert counts[:, 2:].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_strata_are_spread_better_than_at_random(seed):
    volume_set = _skewed(seed=seed)
    _, counts = describe_strata(volume_set)
    ours = imbalance(counts, _parts(volume_set, split_patients(volume_set, seed=seed)), SHARES)
    rng = np.random.default_rng(seed)
    sizes = np.repeat(np.arange(3), [36, 12, 12])
    chance = [imbalance(counts, rng.permutation(sizes), SHARES) for _ in range(200)]
    assert ours < min(chance)
    assert ours < 0.1 * np.median(chance)


def test_patients_without_a_lesion_and_the_rare_class_are_in_every_part():
    volume_set = _skewed()
    rare = {v.patient for v in volume_set.volumes for le in v.lesions if le.category == 1}
    empty = {v.patient for v in volume_set.volumes} - {
        v.patient for v in volume_set.volumes if v.lesions
    }
    for fold in make_folds(volume_set):
        assert len(empty.intersection(fold["test"])) == 4  # of 20
        assert len(rare.intersection(fold["test"])) >= len(rare) // 5 - 1 > 0


def test_the_seed_alone_decides():
    volume_set = _skewed()
    turned = replace(volume_set, volumes=volume_set.volumes[::-1])
    assert make_folds(volume_set) == make_folds(turned)
    assert split_patients(volume_set, seed=1) == split_patients(turned, seed=1)
    assert split_patients(volume_set, seed=1) != split_patients(volume_set, seed=2)


def test_what_the_source_says_is_kept_and_the_rest_is_shared_among_what_it_does_not_name():
    volume_set = _skewed()
    known = {f"p{i:02}": "test" for i in range(20)} | {"gone": "train"}
    splits = complete_splits(volume_set, known).splits
    assert splits["test"] == tuple(f"p{i:02}" for i in range(20))
    assert {split: len(names) for split, names in splits.items()} == {
        "train": 30,
        "val": 10,
        "test": 20,
    }
    known |= {"p20": "train", "p21": "val"}
    splits = complete_splits(volume_set, known).splits
    assert (splits["train"], splits["val"]) == (("p20",), ("p21",))


def test_folds_of_the_source_are_kept_and_the_first_gives_the_splits():
    volume_set = _skewed(6)
    folds = ({"train": ("p00", "p01", "gone"), "val": ("p02",)}, {"train": ("p02",), "val": ()})
    done = complete_splits(volume_set, {"p05": "test"}, folds)
    assert done.folds == (
        {"train": ("p00", "p01"), "val": ("p02",)},
        {"train": ("p02",), "val": ()},
    )
    assert done.splits == {"train": ("p00", "p01"), "val": ("p02",), "test": ("p05",)}


def test_more_folds_than_patients_are_refused():
    alone = _skewed(1)
    assert split_patients(alone) == {"train": ("p00",)}
    with pytest.raises(ValueError, match="found 5 folds, expected 2 to 4, the number of patients"):
        make_folds(_skewed(4), 5)
    folds = make_folds(_skewed(5), 5)
    assert Counter(chain(*(fold["test"] for fold in folds))) == dict.fromkeys(
        (f"p{i:02}" for i in range(5)), 1
    )


@pytest.mark.parametrize("shares", [(60, 20), (60, -1, 20), (0, 0, 0), (1, float("nan"), 1)])
def test_shares_that_are_none(shares):
    with pytest.raises(ValueError, match=r"found shares .* expected 0 or more for each"):
        split_patients(_skewed(5), shares)
    with pytest.raises(ValueError, match="found shares"):
        make_folds(_skewed(5), 2, shares)
