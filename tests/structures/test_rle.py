from lesion_d2.structures.rle import check_mask, decode_mask, encode_mask, encode_masks

import numpy as np
import pytest
from pycocotools import mask as coco_mask


def made_up_masks():
    rng = np.random.default_rng(0)
    for _ in range(150):
        height, width = rng.integers(1, 40, 2)
        yield rng.random((height, width)) < rng.random()
    for value in (False, True):
        yield np.full((1, 1), value)
        yield np.full((300, 500), value)  # a run of four characters


def write_runs(runs: list[int]) -> str:
    """The counts of runs, one bit after another, as COCO's rleToString writes them."""
    text = ""
    for i, run in enumerate(runs):
        value, more = run - runs[i - 2] * (i > 2), True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            text += chr(bits + 0x20 * more + 48)
    return text


def test_masks_come_back_as_pycocotools_decodes_them():
    for mask in made_up_masks():
        rle = encode_mask(mask)
        theirs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert rle == {"size": theirs["size"], "counts": theirs["counts"].decode()}
        assert np.array_equal(decode_mask(rle, mask.shape), mask)
        assert np.array_equal(coco_mask.decode(rle), mask)
        num_runs, area = check_mask({**rle, "counts": rle["counts"].encode()}, mask.shape)
        columns = mask.T.ravel()
        assert (num_runs, area) == (
            1 + columns[0] + np.diff(columns).astype(bool).sum(),
            mask.sum(),
        )


def test_masks_of_an_image_are_encoded_one_by_one():
    masks = np.zeros((4, 9, 12), dtype=bool)
    masks[1, 2:5, 3:7] = masks[3, :, -1] = True
    assert encode_masks(masks) == [encode_mask(mask) for mask in masks]
    assert encode_masks(masks[:0]) == []


def test_runs_of_no_pixel_are_read_as_they_stand():
    runs = [0, 3, 0, 2, 5, 0, 0, 2]
    rle = {"size": [3, 4], "counts": write_runs(runs)}
    assert decode_mask(rle).T.ravel().astype(int).tolist() == [1] * 5 + [0] * 5 + [1] * 2
    assert check_mask(rle) == (8, 7)


def test_counts_with_any_character_changed_cut_or_added_are_right_or_refused():
    mask = np.zeros((24, 32), bool)
    mask[3:20, 4:30] = mask[10, 1] = True
    counts, rng, refused = encode_mask(mask)["counts"], np.random.default_rng(0), 0
    for i in range(len(counts)):
        letter = chr(rng.integers(33, 127))
        for changed in (
            counts[:i],
            counts[:i] + letter + counts[i + 1 :],
            counts[:i] + counts[i:] * 2,
        ):
            rle = {"size": [24, 32], "counts": changed}
            try:
                found = decode_mask(rle, (24, 32))
            except ValueError as error:
                assert "\n" not in str(error)
                refused += 1
            else:
                assert np.array_equal(found, coco_mask.decode(rle)), changed
    assert refused > 2 * len(counts)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        *[(value, "found the mask") for value in (None, 5, "00", [[1, 2, 3, 4, 5, 6]])],
        *[
            ({"size": size, "counts": "00"}, "found a mask of the size")
            for size in (
                [100_000, 100_000],
                "x",
                None,
                5,
                [],
                [5],
                [5, 5, 5],
                [0, 5],
                [-1, 5],
                [5.0, 5],
                [float("nan"), 5],
                [1e29, 1e29],
                [10**400, 5],
                [True, True],
                [[5], 5],
                {"0": 5, "1": 5},
            )
        ],
        ({"counts": "00"}, "found a mask of the size None"),
        (
            {"size": [5, 4], "counts": "d0"},
            r"found a mask of \[5, 4\] pixels .*, expected \[4, 5\]",
        ),
        *[
            ({"size": [4, 5], "counts": counts}, "found the mask counts .*, expected text")
            for counts in (None, 5, [1, 19], {})
        ],
        *[
            (
                {"size": [4, 5], "counts": counts},
                "found an RLE mask of .* expected runs that fill 4 x 5",
            )
            for counts in (
                "",
                "0",
                "P",
                "d",
                "dP",
                "\u20ac",
                "d\0",
                " ",
                "o" * 10**5,
                "d00" * 10**4,
            )
        ],
        # Two runs whose lengths have the right sum, one of them below 0.
        ({"size": [4, 5], "counts": write_runs([25, -5])}, "found an RLE mask of 0 pixels"),
        ({"size": [4, 5], "counts": write_runs([2**62, -(2**62) + 20])}, "found an RLE mask of 0"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(rle, message):
    for function in (check_mask, decode_mask):
        with pytest.raises(ValueError, match=message) as error:
            function(rle, (4, 5))
        assert len(str(error.value)) < 200 and "\n" not in str(error.value)
