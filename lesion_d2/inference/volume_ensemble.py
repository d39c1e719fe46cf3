"""Inference on volumes with tiles and mirrored views (Jaeger et al., sections 3.2, 4.2)."""

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
    """A volume in the model's voxels, such as ``lesion_d2.data.volumetric.ResampledVolume``.

    Attributes:
        shape: (D, H, W) in the model's voxels.
        source_shape: (D, H, W) of the original volume.
    """

    shape: Shape
    source_shape: Shape

    def load(self, start: Shape, size: Shape, device: torch.device) -> Tensor:
        """Load a block, float (d, h, w); start and size are z, y, x in the model's voxels."""

    def to_source(self, boxes: Tensor) -> Tensor:
        """Map boxes (n, 6) from the model's voxels to the original volume's."""


class VolumeEnsemble(Ensemble):
    """Inference on volumes of any size, over models x tiles x mirrored views.

    As :class:`Ensemble`, for volumetric models, with eight mirrored views. Boxes are mapped to the
    voxels of the original volume and merged there. It also serves a single model, as volumes are
    cut into tiles.

    Memory does not grow with the number of slices: the slices of the next row of tiles are read
    while the model processes the current one, and no slice is read twice.

    Args:
        models, mirrors, tile_overlap, consolidation, iou_threshold, max_detections: see
            :class:`Ensemble`; detections are counted per volume.
        tile_size: depth, height and width of the tiles in the model's voxels.
        patch_size: minimum depth, height and width of the models' input, unless tiles are smaller;
            a smaller volume is centered in air, as in training patches. (0, 0, 0) for no padding.
        tiles_per_batch: number of tiles, each with its mirrored views, per batch.

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
        # A tile smaller than a patch is surrounded by the volume, not by air.
        sides = zip(patch_size, tile_size, strict=True)
        self.patch_size = tuple(min(patch, tile or patch) for patch, tile in sides)
        if tiles_per_batch < 1:
            raise ValueError(f"tiles_per_batch: found {tiles_per_batch}, expected 1 or more")
        self.tiles_per_batch = tiles_per_batch

    @torch.no_grad()
    def views(self, input_dict: Mapping) -> ViewDetections:
        """Detections of all models in all views of one volume, before merging.

        Args:
            input_dict: ``reader``, a :class:`LoadableVolume`, and optionally ``on_slice``, a
                callback for each slice of the original volume that has been processed.
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
        """Detections in each view of tiles of one size, in the model's voxels, tile by tile.

        Args:
            block: (d, H, W), with the depth of the tiles.
            tiles, flips: the tiles and mirrors of a batch.
            shape: shape of the volume.
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
    """Map detections from a tile to the volume."""
    boxes = found.pred_boxes.tensor
    placed = Instances(shape, scores=found.scores, pred_classes=found.pred_classes)
    placed.pred_boxes = Boxes3D(boxes + boxes.new_tensor(tile.start[::-1] * 2))
    if found.has("pred_masks"):
        masks = cut_masks(found.pred_masks)
        placed.pred_masks = [mask.moved(*tile.start[::-1]) for mask in masks]
    return placed


def pad_image(image: Tensor, size: Shape) -> tuple[Tensor, Shape]:
    """Pad a volume symmetrically with air to a minimum size.

    Args:
        image: (C, d, h, w) on the 0..255 scale, where 0 is air.
        size: minimum depth, height and width.

    Returns:
        (C, D, H, W), and z, y, x of the volume's first voxel in it.
    """
    missing = [max(0, least - n) for n, least in zip(image.shape[1:], size, strict=True)]
    start = tuple((side + 1) // 2 for side in missing)  # as in training
    if not any(missing):
        return image, start
    pairs = [(first, side - first) for first, side in zip(start, missing, strict=True)]
    return F.pad(image, [side for pair in reversed(pairs) for side in pair]), start


def _cut(found: Instances, start: Shape, size: Shape) -> Instances:
    """Select the detections in a part of an image, in the part's voxels."""
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
    """Yield the tiles that start at each slice, with the slices that they cover.

    Slices shared with the next tiles are kept, so that each is loaded once.

    Args:
        reader: reads the volume.
        tiles: in the order of :func:`make_tiles`.
        device: device of the slices.

    Yields:
        Tiles and (d, H, W) float.
    """
    plane, block, end = reader.shape[1:], None, 0
    for (start, depth), row in itertools.groupby(tiles, lambda t: (t.start[0], t.size[0])):
        first = max(start, end)  # earlier slices are in the last block
        kept = [] if block is None else [block[len(block) - (first - start) :]]
        end = start + depth
        loaded = reader.load((first, 0, 0), (end - first, *plane), device)
        block = torch.cat([*kept, loaded])
        yield list(row), block


def _to_source(found: ViewDetections, reader: LoadableVolume) -> ViewDetections:
    """Map detections from the model's voxels to the original volume's."""
    instances = Instances(reader.source_shape, **found.instances.get_fields())
    instances.pred_boxes = Boxes3D(reader.to_source(instances.pred_boxes.tensor))
    masks = found.masks
    if masks is not None:
        masks = [mask.resized(reader.shape, reader.source_shape) for mask in masks]
    return replace(found, instances=instances, masks=masks)
