"""Volumes in overlapping tiles and mirrored views (Jaeger et al., sections 3.2 and 4.2)."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor, nn

from ..structures import Boxes3D
from ..utils.prefetch import prefetch
from .cut_masks import cut_masks
from .ensemble import Ensemble
from .tiles import Tile, flip, make_tiles, mirrors_of, unmirror
from .views import ViewDetections, gather_views

Shape = tuple[int, int, int]


class LoadableVolume(Protocol):
    """A volume as a model takes it, such as ``lesion_d2.data.volumetric.ResampledVolume``.

    Attributes:
        shape: (D, H, W) in voxels of the model.
        source_shape: that of the volume itself.
    """

    shape: Shape
    source_shape: Shape

    def load(self, start: Shape, size: Shape, device: torch.device) -> Tensor:
        """A block of it, float (d, h, w); start and size are z, y, x in voxels of the model."""

    def to_source(self, boxes: Tensor) -> Tensor:
        """Boxes (n, 6) in voxels of the model as they are in voxels of the volume itself."""


class VolumeEnsemble(Ensemble):
    """Finds lesions in volumes of any size, with one model or several views.

    As :class:`Ensemble`, for models of volumes: models x tiles x mirrors, of which there are eight.
    Their boxes come back to the voxels of the untouched volume, and are joined there. A model that
    is its only view goes through it too, because tiles cut the volume.

    Memory does not grow with the number of slices: the slices of a row of tiles are read at a time,
    while the model looks at those before, and no slice is read twice.

    Args:
        models, mirrors, tile_overlap, consolidation, iou_threshold, max_detections: see
            :class:`Ensemble`; detections are of a volume.
        tile_size: depth, height and width of the tiles in voxels of the model.
        patch_size: least depth, height and width of what models see, as far as tiles are no
            smaller; a smaller volume lies in the middle of air, as in the patches of training.
            (0, 0, 0) for none.
        tiles_per_batch: tiles, with their mirrored views, that a model looks at together.

    Raises:
        ValueError: as :class:`Ensemble`.

    Example:
        >>> ensemble = VolumeEnsemble([model], tile_size=(64, 128, 128))
        >>> sample = next(iter(build_volume_test_loader(cfg, name)))[0]
        >>> ensemble([sample])[0]["instances"].pred_boxes  # in voxels of the run of slices
    """

    num_axes = 3

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        tile_size: Shape,
        mirrors: bool = True,
        tile_overlap: float = 0.5,
        consolidation: str = "wbc",
        iou_threshold: float = 1e-5,
        max_detections: int = 100,
        patch_size: Shape = (0, 0, 0),
        tiles_per_batch: int = 1,
    ):
        super().__init__(
            models,
            mirrors=mirrors,
            tile_size=tuple(tile_size),
            tile_overlap=tile_overlap,
            consolidation=consolidation,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
        )
        # A tile that is smaller than a patch has the volume around it, no air.
        sides = zip(patch_size, tile_size, strict=True)
        self.patch_size = tuple(min(patch, tile or patch) for patch, tile in sides)
        if tiles_per_batch < 1:
            raise ValueError(f"tiles_per_batch: found {tiles_per_batch}, expected 1 or more")
        self.tiles_per_batch = tiles_per_batch

    @torch.no_grad()
    def views(self, input_dict: Mapping) -> ViewDetections:
        """What the models find in all views of one volume, not yet consolidated.

        Args:
            input_dict: ``reader``, a :class:`LoadableVolume`, and optionally ``on_slice``, which
                is called for each slice of the volume itself when the models have looked at it.
        """
        reader, options = input_dict["reader"], self.view_options
        tiles = make_tiles(reader.shape, options["tile_size"], options["tile_overlap"])
        flips = mirrors_of(3, mirrors=options["mirrors"])
        device = next(self.parameters()).device
        views, num_done = [], 0
        for row, block in prefetch(load_rows(reader, tiles, device)):
            for first in range(0, len(row), self.tiles_per_batch):
                views += self._look(
                    block, row[first : first + self.tiles_per_batch], flips, reader.shape
                )
            end = row[0].start[0] + row[0].size[0]
            num_seen = reader.source_shape[0] * end // reader.shape[0]
            for _ in range(num_seen - num_done if "on_slice" in input_dict else 0):
                input_dict["on_slice"]()
            num_done = num_seen
        num_views = len(self.models) * len(flips)
        tile_ids = np.repeat(np.arange(len(tiles)), num_views).tolist()
        sizes = reader.shape, reader.shape
        found = gather_views(views, tile_ids, tiles, num_views=num_views, sizes=sizes)
        return _to_source(found, reader)

    def _look(
        self, block: Tensor, tiles: Sequence[Tile], flips: Sequence[tuple], shape: Shape
    ) -> Iterator[Instances]:
        """What each view of tiles of one size shows, in voxels of the model, tile by tile.

        Args:
            block: (d, H, W), as deep as the tiles.
            tiles, flips: which are a batch.
            shape: of the volume.
        """
        cuts = [block[None][(..., *tile.slices[2:])] for tile in tiles]
        images, (start, *_) = zip(*(pad_image(cut, self.patch_size) for cut in cuts), strict=True)
        batch = [{"image": flip(image, mirror)} for image in images for mirror in flips]
        outputs = [model(batch) for model in self.models]
        for number, tile in enumerate(tiles):
            views = slice(number * len(flips), (number + 1) * len(flips))
            for of_model in outputs:
                for output, mirror in zip(of_model[views], flips, strict=True):
                    found = unmirror(output["instances"], mirror)
                    if tuple(images[0].shape[1:]) != tile.size:
                        found = _cut(found, start, tile.size)
                    yield _place(found, tile, shape)


def _place(found: Instances, tile: Tile, shape: Shape) -> Instances:
    """Detections on a tile in voxels of the volume."""
    boxes = found.pred_boxes.tensor
    placed = Instances(shape, scores=found.scores, pred_classes=found.pred_classes)
    placed.pred_boxes = Boxes3D(boxes + boxes.new_tensor(tile.start[::-1] * 2))
    if found.has("pred_masks"):
        masks = cut_masks(found.pred_masks)
        placed.pred_masks = [mask.moved(*tile.start[::-1]) for mask in masks]
    return placed


def pad_image(image: Tensor, size: Shape) -> tuple[Tensor, Shape]:
    """Put a volume in the middle of air, where it is smaller than a size.

    Args:
        image: (C, d, h, w) on the 0..255 scale, of which 0 is air.
        size: depth, height and width at least.

    Returns:
        (C, D, H, W), and z, y, x of its voxel where the volume begins.
    """
    missing = [max(0, least - n) for n, least in zip(image.shape[1:], size, strict=True)]
    start = tuple((side + 1) // 2 for side in missing)  # as in training
    if not any(missing):
        return image, start
    pairs = [(first, side - first) for first, side in zip(start, missing, strict=True)]
    return F.pad(image, [side for pair in reversed(pairs) for side in pair]), start


def _cut(found: Instances, start: Shape, size: Shape) -> Instances:
    """What lies in a part of an image, in the part's voxels."""
    boxes = found.pred_boxes.tensor
    part = Instances(size, scores=found.scores, pred_classes=found.pred_classes)
    part.pred_boxes = Boxes3D(boxes - boxes.new_tensor(start[::-1] * 2))
    part.pred_boxes.clip(size)
    if found.has("pred_masks"):
        cut = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
        part.pred_masks = found.pred_masks[(slice(None), *cut)]
    return part[part.pred_boxes.nonempty()]


def load_rows(
    reader: LoadableVolume, tiles: list[Tile], device: torch.device
) -> Iterator[tuple[list[Tile], Tensor]]:
    """The tiles that begin at one slice, with the whole slices that they are of.

    Slices that the next tiles have too are kept, so that each is loaded once.

    Args:
        reader: of the volume.
        tiles: see :func:`make_tiles`, in its order.
        device: of the slices.

    Yields:
        Tiles and (d, H, W) float.
    """
    plane, block, end = reader.shape[1:], None, 0
    for (start, depth), row in itertools.groupby(tiles, lambda t: (t.start[0], t.size[0])):
        first = max(start, end)  # what comes before is in the last block
        kept = [] if block is None else [block[len(block) - (first - start) :]]
        end = start + depth
        loaded = reader.load((first, 0, 0), (end - first, *plane), device)
        block = torch.cat([*kept, loaded])
        yield list(row), block


def _to_source(found: ViewDetections, reader: LoadableVolume) -> ViewDetections:
    """Bring detections from the voxels of the model to those of the volume itself."""
    instances = Instances(reader.source_shape, **found.instances.get_fields())
    instances.pred_boxes = Boxes3D(reader.to_source(instances.pred_boxes.tensor))
    masks = found.masks
    if masks is not None:
        masks = [mask.resized(reader.shape, reader.source_shape) for mask in masks]
    return replace(found, instances=instances, masks=masks)
