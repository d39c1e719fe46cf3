"""Maps records of volumes to training samples of 3-D detectors."""

import logging
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from detectron2.config import configurable

from ...config import trains_on_masks
from ...structures.ignore_regions import lesions_of
from ..slices.ct import clip_to_window, hu_to_pixels
from .augmentation import RandomVolumePatch
from .lesions import transform_volume_lesions
from .reading import model_shape, read_block
from .warp import VolumeWarp

logger = logging.getLogger(__name__)


class VolumePatchMapper:
    """Maps a volume's record to a patch for training 3-D models.

    1. Samples a patch and its augmentation (:class:`RandomVolumePatch`), using the lesions' boxes.
    2. Reads the part of the volume that the patch covers, and clips it to the window.
    3. Resamples and augments it in one interpolation.
    4. Returns ``image`` and ``instances`` (:func:`transform_volume_lesions`).

    Args:
        patches: samples the patches.
        spacing: x, y, z in mm of the model's voxels; 0 keeps the spacing of an axis.
        hu_window: the HU mapped to 0 and 255; voxels outside the volume are 0.
        with_masks: whether instances have ``gt_masks``.
        pseudo_mask_from_box: whether lesions without masks are ellipsoids inscribed in their boxes.

    Raises:
        ValueError: the window or the spacing is invalid.
    """

    @configurable
    def __init__(
        self,
        patches: RandomVolumePatch,
        *,
        spacing: Sequence[float] = (0.0, 0.0, 0.0),
        hu_window: tuple[float, float] = (-1024.0, 1050.0),
        with_masks: bool = False,
        pseudo_mask_from_box: bool = True,
    ):
        self.patches = patches
        self.spacing = tuple(spacing)
        self.hu_window = tuple(hu_window)
        self.with_masks = with_masks
        self.pseudo_mask_from_box = pseudo_mask_from_box
        if not self.hu_window[0] < self.hu_window[1]:
            raise ValueError(f"INPUT.CT.HU_WINDOW: found {self.hu_window}, expected low < high")
        if len(self.spacing) != 3 or not all(side >= 0 for side in self.spacing):
            raise ValueError(
                f"INPUT.VOLUME.SPACING: found {self.spacing}, expected x, y and z in mm, or 0"
            )
        logger.info(f"Patches in training: {vars(patches)}")

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments of ``VolumePatchMapper(cfg)``."""
        with_masks = trains_on_masks(cfg)
        _check_config(cfg, with_masks)
        return {
            "patches": RandomVolumePatch(cfg),
            "spacing": cfg.INPUT.VOLUME.SPACING,
            "hu_window": tuple(cfg.INPUT.CT.HU_WINDOW),
            "with_masks": with_masks,
            "pseudo_mask_from_box": cfg.INPUT.PSEUDO_MASK_FROM_BOX,
        }

    def __setstate__(self, state: dict) -> None:
        # Unpickled in a worker that was not forked: OpenCV would start one thread per core.
        self.__dict__.update(state)
        cv2.setNumThreads(0)

    def __call__(self, record: Mapping) -> dict:
        """Sample one patch of a volume.

        Args:
            record: see :func:`~lesion_d2.data.volumetric.records.volume_records`; not modified.

        Returns:
            ``image_id`` and ``volume`` of the record; ``image``, float32 (1, D, H, W) on the 0..255
            scale; and ``instances`` with ``gt_boxes``, ``gt_classes`` and, with ``with_masks``,
            ``gt_masks``.

        Raises:
            ValueError: the volume has no spacing and one is required, a file is damaged, or a
                lesion has no mask and ``pseudo_mask_from_box`` is off.
        """
        sample = self.load(record)
        sample["image"] = hu_to_pixels(sample["image"], self.hu_window)
        return sample

    def load(self, record: Mapping) -> dict:
        """As :meth:`__call__`, but ``image`` is int16 in HU, half the bytes to copy to a GPU."""
        annotations = record["annotations"]
        self._check_masks(record, annotations)
        boxes = [a["bbox"] for a in lesions_of(annotations)]
        shape = record["shape"]
        warp = self.patches.draw(
            shape, model_shape(record, self.spacing), np.array(boxes, float).reshape(-1, 6)
        )
        image = self.patches.change_values(self._read(record, warp))
        return {
            "image_id": record["image_id"],
            "volume": record["volume"],
            "image": torch.from_numpy(image)[None],
            "instances": transform_volume_lesions(
                annotations, warp, shape, with_masks=self.with_masks
            ),
        }

    def _check_masks(self, record: Mapping, annotations: Sequence[Mapping]) -> None:
        if not self.with_masks or self.pseudo_mask_from_box:
            return
        for annotation in lesions_of(annotations):
            if "segmentation" not in annotation:
                raise ValueError(
                    f"volume {record['image_id']}: found lesion {annotation['lesion_id']} without "
                    "a mask on all its slices, expected one (INPUT.PSEUDO_MASK_FROM_BOX is False)"
                )

    def _read(self, record: Mapping, warp: VolumeWarp) -> np.ndarray:
        """(d, h, w) int16 in HU."""
        fill = int(np.floor(self.hu_window[0]))
        ranges = warp.source_ranges(record["shape"])
        if ranges is None:
            return np.full(warp.size, fill, np.int16)
        start = [first for first, _ in ranges]
        block = read_block(record, start, [end - first for first, end in ranges], fill)
        clip_to_window(block, self.hu_window)
        return warp.apply_image(block, start, record["shape"], fill)


def _check_config(cfg, with_masks: bool) -> None:
    """Check that the config is supported for patches of volumes."""
    refused = (
        ("INPUT.AUG.RESIZE_RANGE", tuple(cfg.INPUT.AUG.RESIZE_RANGE), (1.0, 1.0)),
        ("INPUT.CT.CROP_TO_BODY", cfg.INPUT.CT.CROP_TO_BODY, False),
    )
    for key, found, expected in refused:
        if found != expected:
            raise ValueError(f"{key}: found {found}, expected {expected} for patches of volumes")
    if with_masks and (cfg.INPUT.PSEUDO_MASK != "ellipse" or cfg.INPUT.PSEUDO_MASK_FILES):
        raise ValueError(
            f"INPUT.PSEUDO_MASK: found {cfg.INPUT.PSEUDO_MASK!r} with "
            f"{len(cfg.INPUT.PSEUDO_MASK_FILES)} files of masks, expected 'ellipse' and no files "
            "for patches of volumes: lesions without masks are ellipsoids"
        )
