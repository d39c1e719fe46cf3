import itertools

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.data.transforms.patches import draw_start
from lesion_d2.inference import VolumeEnsemble
from lesion_d2.inference.cut_masks import CutMask, cut_masks
from lesion_d2.inference.tiles import make_tiles, mirrors_of
from lesion_d2.inference.volume_ensemble import load_rows
from lesion_d2.structures import Boxes3D

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from made_up_patches import Reader
from torch import nn

SCORES = torch.tensor([0.9, 0.7, 0.5])
FLIPS = ((), (-1,), (-2,), (-2, -1), (-3,), (-3, -1), (-3, -2), (-3, -2, -1))


class Seeing(nn.Module):
    """Finds, for each of the values 1, 2, 3, the box around its voxels: what it sees."""

    def __init__(self, *, masks=True, trust=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.masks, self.trust, self.seen, self.batches = masks, trust, [], []

    def forward(self, batched_inputs):
        self.batches.append(len(batched_inputs))
        return [{"instances": self.look(each["image"])} for each in batched_inputs]

    def look(self, image):
        assert image.ndim == 4 and image.shape[0] == 1
        self.seen.append(image[0])
        classes = [c for c in range(3) if (image == c + 1).any()]
        masks = torch.stack([image[0] == c + 1 for c in classes]) if classes else image[:0] > 0
        found = Instances(
            tuple(image.shape[1:]),
            pred_boxes=Boxes3D(torch.tensor([extent(m) for m in masks]).reshape(-1, 6)),
            scores=self.trust * SCORES[classes],
            pred_classes=torch.tensor(classes, dtype=torch.int64),
        )
        if self.masks:
            found.pred_masks = masks
        return found


def extent(mask):
    """x1, y1, z1, x2, y2, z2 with edges."""
    places = torch.nonzero(mask).flip(1)
    return [*(places.amin(0) - 0.5).tolist(), *(places.amax(0) + 0.5).tolist()]


def make_volume(shape, boxes):
    """Boxes x1, y1, z1, x2, y2, z2, ends excluded, of the values 1, 2, 3."""
    volume = torch.zeros(shape)
    for value, (x1, y1, z1, x2, y2, z2) in enumerate(boxes, 1):
        volume[z1:z2, y1:y2, x1:x2] = value
    return volume


def whole(mask, shape):
    full = torch.zeros(shape, dtype=torch.bool)
    full[mask.window] = mask.pixels
    return full


BOXES = [(3, 6, 1, 12, 9, 4), (30, 0, 0, 44, 21, 9), (15, 12, 5, 21, 30, 7)]


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 1, 1)])
@pytest.mark.parametrize("tile_size", [(30, 40, 100), (6, 20, 30)])
def test_every_view_comes_back_to_the_untouched_volume(factors, tile_size):
    volume = make_volume((9, 33, 47), BOXES)
    reader, models = Reader(volume, factors), [Seeing(), Seeing(trust=0.5)]
    ensemble = VolumeEnsemble(models, tile_size=tile_size, tile_overlap=0.25)
    found = ensemble.views({"reader": reader})
    tiles = make_tiles(reader.shape, tile_size, 0.25)
    assert found.instances.image_size == (9, 33, 47)

    num_cut = 0
    for view, (tile, model, flip) in enumerate(itertools.product(tiles, models, FLIPS)):
        image = reader.volume[tile.slices]
        assert torch.equal(model.seen[tiles.index(tile) * 8 + FLIPS.index(flip)], image.flip(flip))
        (own,) = torch.nonzero(found.view_ids == view, as_tuple=True)
        values = [v for v in (1, 2, 3) if (image == v).any()]
        assert found.instances.pred_classes[own].tolist() == [v - 1 for v in values]
        assert torch.equal(
            found.instances.scores[own], SCORES[[v - 1 for v in values]] * model.trust
        )
        for value, row in zip(values, own.tolist(), strict=True):
            part = torch.zeros(reader.shape, dtype=torch.bool)
            part[tile.slices] = image == value
            num_cut += int(part.sum() < (reader.volume == value).sum())
            box = reader.to_source(torch.tensor([extent(part)]))[0]
            torch.testing.assert_close(found.instances.pred_boxes.tensor[row], box)
            if factors == (1, 1, 1):
                assert torch.equal(whole(found.masks[row], (9, 33, 47)), part)
    assert (num_cut > 0) == (len(tiles) > 1)
    assert models[0].batches == [8] * len(tiles)


def test_what_clustering_asks_of_a_view_is_of_the_tiles_in_the_voxels_of_the_model():
    reader = Reader(make_volume((9, 33, 47), BOXES), (2, 1, 1))
    found = VolumeEnsemble([Seeing(masks=False)], tile_size=(6, 16, 20), mirrors=False).views(
        {"reader": reader}
    )
    tiles = make_tiles(reader.shape, (6, 16, 20), 0.5)
    boxes = found.instances.pred_boxes.tensor.double()
    centers = (boxes[:, 3:] + boxes[:, :3]) / 2 * torch.tensor([1, 1, 2]) + torch.tensor(
        [0, 0, 0.5]
    )

    assert found.masks is None and len(boxes) > 20
    for center, view, count, weight in zip(
        centers.tolist(), found.view_ids, found.num_views, found.center_weights, strict=True
    ):
        holds = [
            all(
                s - 0.5 <= c < s - 0.5 + n
                for c, s, n in zip(center[::-1], t.start, t.size, strict=True)
            )
            for t in tiles
        ]
        assert count == sum(holds)
        tile = tiles[view]
        density = 1.0
        for c, s, n in zip(center[::-1], tile.start, tile.size, strict=True):
            density *= np.exp(-(((c - s - (n - 1) / 2) / (0.4 * n)) ** 2) / 2)
        assert float(weight) == pytest.approx(density, rel=1e-4)
    assert found.num_views.max() > 4 and found.center_weights.min() < 0.3


@pytest.mark.parametrize("consolidation", ["wbc", "nms"])
def test_what_all_views_agree_on_stays_as_it_is(consolidation):
    volume = make_volume((9, 33, 47), BOXES)
    models = [Seeing(), Seeing()]
    ensemble = VolumeEnsemble(models, tile_size=(16, 40, 48), consolidation=consolidation)
    [output] = ensemble([{"reader": Reader(volume)}])
    found = output["instances"]
    assert isinstance(found.pred_boxes, Boxes3D) and found.image_size == (9, 33, 47)
    wanted = torch.tensor([extent(volume == value) for value in (1, 2, 3)])
    torch.testing.assert_close(found.pred_boxes.tensor, wanted)
    torch.testing.assert_close(found.scores, SCORES)
    for value, mask in enumerate(found.pred_masks, 1):
        assert torch.equal(whole(mask, (9, 33, 47)), volume == value)


@pytest.mark.parametrize("consolidation", ["wbc", "nms"])
def test_tiles_leave_no_fragments_of_an_object_at_their_seams(consolidation):
    """A detector that finds what each tile shows of an object; its score is the share of it."""
    size, model = 4 * 6 * 7, Seeing(masks=False)
    look = model.look

    def look_and_doubt(image):
        found = look(image)
        found.scores = found.scores * (image > 0).sum() / size
        return found

    model.look = look_and_doubt
    options = {"tile_size": (8, 16, 16), "mirrors": False, "consolidation": consolidation}
    ensemble, num_views = VolumeEnsemble([model], **options), []
    for z, y, x in itertools.product((1, 5, 8), (2, 7, 13), (4, 12)):
        reader = Reader(make_volume((16, 24, 32), [(x, y, z, x + 7, y + 6, z + 4)]))
        num_views.append(len(ensemble.views({"reader": reader}).instances))
        [output] = ensemble([{"reader": reader}])
        [box] = output["instances"].pred_boxes.tensor
        truth = torch.tensor([x, y, z, x + 7, y + 6, z + 4]) - 0.5
        sides = torch.minimum(box[3:], truth[3:]) - torch.maximum(box[:3], truth[:3])
        # All that a tile shows of the object is part of it.
        assert sides.prod() > (0.999 if consolidation == "nms" else 0.6) * size
    assert max(num_views) > 6


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.8])
def test_each_slice_is_loaded_once_whatever_the_overlap(overlap):
    rng = np.random.default_rng(0)
    reader = Reader(torch.tensor(rng.normal(size=(41, 12, 9))))
    tiles = make_tiles(reader.shape, (10, 8, 8), overlap)
    seen = []
    for row, block in load_rows(reader, tiles, torch.device("cpu")):
        start, depth = row[0].start[0], row[0].size[0]
        assert torch.equal(block, reader.volume[start : start + depth])
        seen += row
    assert seen == tiles and reader.loaded == list(range(41))


@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 5, 7)])
def test_thin_and_small_volumes_are_taken_whole(shape):
    volume = torch.zeros(shape)
    volume[-1, 2:4, 3:6] = 1
    model = Seeing(masks=False)
    [output] = VolumeEnsemble([model], tile_size=(16, 40, 40))([{"reader": Reader(volume)}])
    found = output["instances"].pred_boxes.tensor.tolist()
    assert found == [[2.5, 1.5, shape[0] - 1.5, 5.5, 3.5, shape[0] - 0.5]]
    assert model.seen[0].shape == shape
    nothing = VolumeEnsemble([model], tile_size=(16, 40, 40))([{"reader": Reader(volume * 0)}])
    assert len(nothing[0]["instances"]) == 0
    assert nothing[0]["instances"].pred_boxes.tensor.shape == (0, 6)


@pytest.mark.parametrize("shape", [(3, 12, 50), (3, 12, 13)])
def test_a_volume_smaller_than_a_patch_lies_in_the_middle_of_air_as_in_training(shape):
    rng = np.random.default_rng(0)
    volume = torch.tensor(rng.uniform(4, 9, shape)).float()
    volume[1:, 2:4, 3:6], volume[0, 11, 9:13] = 1, 2
    model = Seeing()
    ensemble = VolumeEnsemble([model], tile_size=(16, 12, 16), patch_size=(6, 10, 15))
    [output] = ensemble([{"reader": Reader(volume)}])
    found = output["instances"]
    depth, height, width = model.seen[0].shape
    assert (depth, height, width) == (6, 12, max(15, min(16, shape[2])))
    # RandomVolumePatch draws the same place, draw_start(side, patch_side, None).
    z, x = -draw_start(3, 6, None), -draw_start(min(shape[2], 15), 15, None)
    assert torch.equal(model.seen[0][z : z + 3, :, x : x + 13], volume[:, :, :13])
    assert (model.seen[0][:z] == 0).all() and (model.seen[0][z + 3 :] == 0).all()
    assert found.pred_boxes.tensor[0].tolist() == [2.5, 1.5, 0.5, 5.5, 3.5, 2.5]
    assert torch.equal(whole(found.pred_masks[0], shape), volume == 1)
    assert len(found) == 2 and found.pred_boxes.tensor[1, 3] == 12.5


def test_tiles_smaller_than_a_patch_have_no_air_around_them():
    volume = torch.tensor(np.random.default_rng(0).uniform(4, 9, (5, 12, 16))).float()
    model = Seeing()
    options = {"tile_size": (8, 6, 0), "patch_size": (10, 10, 20), "mirrors": False}
    VolumeEnsemble([model], **options).views({"reader": Reader(volume)})
    tiles = make_tiles(volume.shape, (8, 6, 0), 0.5)
    assert len(tiles) == len(model.seen) == 3
    for seen, tile in zip(model.seen, tiles, strict=True):
        # As deep as a tile and as wide as a patch, of which the volume has less.
        assert seen.shape == (8, 6, 20)
        assert torch.equal(seen[2:7, :, 2:18], volume[tile.slices])
        assert seen.count_nonzero() == 5 * 6 * 16


def test_what_a_model_finds_in_the_air_around_a_volume_is_dropped():
    class Dreaming(Seeing):
        def look(self, image):
            boxes = [[0.0, 0.0, 0.0, 5.0, 5.0, 1.2], [-0.5, -0.5, 0.5, 8.5, 9.5, 5.5]]
            scores, classes = SCORES[:2], torch.tensor([0, 1])
            boxes = Boxes3D(torch.tensor(boxes))
            return Instances((6, 10, 9), pred_boxes=boxes, scores=scores, pred_classes=classes)

    ensemble = VolumeEnsemble(
        [Dreaming()], tile_size=(6, 10, 9), patch_size=(6, 10, 9), mirrors=False
    )
    found = ensemble([{"reader": Reader(torch.zeros(2, 10, 9))}])[0]["instances"]
    assert found.pred_classes.tolist() == [1]
    assert found.pred_boxes.tensor.tolist() == [[-0.5, -0.5, -0.5, 8.5, 9.5, 1.5]]


@pytest.mark.parametrize("size", [(5, 11, 20), (12, 5, 13), (6, 11, 7)])
def test_a_resized_mask_is_the_resized_array_above_a_half(size):
    rng = np.random.default_rng(sum(size))
    masks = torch.zeros(8, 6, 11, 13, dtype=torch.bool)
    for mask in masks:
        start, end = np.sort(rng.integers(0, [[6, 11, 13]] * 2, size=(2, 3)), axis=0)
        window = tuple(slice(a, b + 1) for a, b in zip(start, end, strict=True))
        mask[window] = torch.tensor(rng.uniform(size=mask[window].shape) < 0.7)
    wanted = F.interpolate(masks[None].float(), size, mode="trilinear")[0]
    for mask, share in zip(cut_masks(masks), wanted, strict=True):
        found = whole(mask.resized((6, 11, 13), size), size)
        clear = (share - 0.5).abs() > 1e-5
        assert torch.equal(found[clear], (share > 0.5)[clear]) and clear.float().mean() > 0.7
    unchanged = cut_masks(masks)[0]
    assert unchanged.resized((6, 11, 13), (6, 11, 13)) is unchanged


def test_mirrors_are_those_of_every_set_of_axes():
    for num_axes in (2, 3):
        found = mirrors_of(num_axes)
        assert len(found) == len(set(found)) == 2**num_axes and not any(found[0])
        assert mirrors_of(num_axes, mirrors=False) == found[:1]
    assert mirrors_of(2) == ((False, False), (True, False), (False, True), (True, True))
    moved = CutMask((slice(1, 2), slice(3, 5), slice(6, 9)), torch.ones(1, 2, 3)).moved(10, 20, 30)
    assert moved.window == (slice(31, 32), slice(23, 25), slice(16, 19))


def test_invalid_arguments_of_volumes_are_refused():
    with pytest.raises(ValueError, match=r"tile_size: found \(8, -1, 8\), expected 0 or more"):
        VolumeEnsemble([Seeing()], tile_size=(8, -1, 8))
    with pytest.raises(ValueError, match="models: found none"):
        VolumeEnsemble([], tile_size=(8, 8, 8))
    assert VolumeEnsemble([Seeing()], tile_size=(8, 8, 8)).num_mirrors == 8
