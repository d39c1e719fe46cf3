"""The mapper from a dict of a data set to model input."""

import logging
import os
from collections.abc import Mapping
from functools import partial

import cv2
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from ..config import trains_on_masks, uses_pseudo_labels
from ..structures.boxes import annotation_boxes, xyxy_box
from ..structures.ignore_regions import (
    is_region,
    lesions_of,
    regions_of,
    split_regions,
)
from ..structures.rle import decode_mask
from ..structures.slice_geometry import EXPECTED_SPACING, is_spacing
from ..utils.random_states import numpy_state_kept
from .inserted.augmentation import LesionInserter, build_lesion_inserter
from .pseudo_masks import (
    METHODS,
    PseudoMask,
    grabcut_image,
    lesion_ends,
    pseudo_mask,
)
from .pseudo_masks.files import PseudoMasks, load_mask_file
from .slices.ct import SliceChange, hu_to_pixels, stack_and_key_slice
from .transforms.augmentation import build_augmentations
from .transforms.borders import body_extent, volume_extent
from .transforms.lesion_transforms import transform_lesions
from .transforms.patches import MIN_SHARE, RandomPatch
from .transforms.slice_input import SliceInput

logger = logging.getLogger(__name__)

#: Keys of the images of a sample, int16 until they are on the device.
IMAGE_KEYS = ("image", "weak_image")
# mm, default pixel spacing for cropping borders: 3DCE's published code uses pixels of this size.
_USUAL_SPACING = (0.8, 0.8)


class LesionDatasetMapper:
    """Maps a DeepLesion dict to the input of Detectron2's models.

    1. Reads the key slice and its neighbors as C slices at a fixed interval (:func:`slice_stack`);
       in training, lesions may be inserted (:mod:`lesion_d2.data.inserted`).
    2. Crops the black borders around the body, if enabled.
    3. Applies the augmentations to the stack, the lesions' outlines and their masks.
    4. Returns ``image``, in training ``instances``, and in inference with masks ``lesion_masks``.

    A box after a rotation is the extent of the lesion's outline, see :func:`lesion_outline`. A
    lesion is dropped if its box center is outside the image. Regions to ignore (``iscrowd``) are
    instances of class -1 in training, and not used otherwise, see
    :mod:`lesion_d2.structures.ignore_regions`. The same applies to lesions that a patch
    (:class:`~lesion_d2.data.transforms.patches.RandomPatch`) cuts too much.

    Args:
        is_train: whether to add ``instances`` from ``annotations``.
        augmentations: Detectron2 augmentations for int16 images; they may use ``spacing``.
            Transforms of Detectron2 fill with air (:mod:`lesion_d2.data.transforms.slice_input`).
        num_slices, slice_interval: C, and the distance between slices in mm; 0 for that of the
            files.
        hu_window: the HU mapped to 0 and 255.
        cut_borders: crop images to the key slice's :func:`body_extent` or, for dicts with
            ``volume``, to that of the volume, so that neighboring key slices share slices.
        mask_method: how masks are computed from diameters, or only from boxes
            (:func:`lesion_ends`), for annotations without ``segmentation``: "ellipse", "grabcut",
            or "" for neither ``gt_masks`` nor ``lesion_masks``.
        pseudo_mask_from_box: allow masks that are computed only from boxes.
        pseudo_masks: precomputed masks; masks of other lesions are computed on the fly.
        weak_augmentations: augmentations of a second view in training, for a mean teacher (Bai et
            al., 2023); None for no second view.
        inserter: paints synthetic lesions into the slices of training images; None for none.

    Attributes:
        hard_negatives: ``image_id`` -> additional annotations in training (Tang et al., section
            2.2): ``bbox`` (XYXY), ``category_id`` and ``segmentation`` (COCO RLE) on the slice as
            on disk, without ``recist``.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation],
        num_slices: int = 3,
        slice_interval: float = 2.0,
        hu_window: tuple[float, float] = (-1024.0, 1050.0),
        cut_borders: bool = False,
        mask_method: str = "",
        pseudo_mask_from_box: bool = True,
        pseudo_masks: tuple[PseudoMasks, ...] = (),
        weak_augmentations: list[T.Augmentation] | None = None,
        inserter: LesionInserter | None = None,
    ):
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self._min_share = None
        if any(isinstance(a, RandomPatch) for a in augmentations):
            self._min_share = MIN_SHARE
        self.weak_augmentations = None
        if weak_augmentations is not None:
            self.weak_augmentations = T.AugmentationList(weak_augmentations)
        self.inserter = inserter
        self.num_slices = num_slices
        self.slice_interval = slice_interval
        self.hu_window = hu_window
        self.cut_borders = cut_borders
        self.mask_method = mask_method
        self.pseudo_mask_from_box = pseudo_mask_from_box
        self.pseudo_masks = pseudo_masks
        self.hard_negatives: Mapping[str, list[dict]] = {}
        self._num_masks = self._num_fallbacks = 0
        self._check()
        mode = "training" if is_train else "inference"
        logger.info(f"Augmentations in {mode}: {augmentations}")

    @classmethod
    def from_config(cls, cfg, is_train: bool = True, *, with_masks: bool = False) -> dict:
        """Arguments of ``LesionDatasetMapper(cfg, is_train, with_masks=with_masks)``."""
        ct = cfg.INPUT.CT
        if len(cfg.MODEL.PIXEL_MEAN) != ct.NUM_SLICES or len(cfg.MODEL.PIXEL_STD) != ct.NUM_SLICES:
            raise ValueError(
                f"MODEL.PIXEL_MEAN, PIXEL_STD: found {len(cfg.MODEL.PIXEL_MEAN)} and "
                f"{len(cfg.MODEL.PIXEL_STD)} values, expected {ct.NUM_SLICES} (INPUT.CT.NUM_SLICES)"
            )
        with_masks = with_masks or (is_train and trains_on_masks(cfg))
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "num_slices": ct.NUM_SLICES,
            "slice_interval": ct.SLICE_INTERVAL,
            "hu_window": tuple(ct.HU_WINDOW),
            "cut_borders": ct.CROP_TO_BODY,
            "mask_method": cfg.INPUT.PSEUDO_MASK if with_masks else "",
            "pseudo_mask_from_box": cfg.INPUT.PSEUDO_MASK_FROM_BOX,
            "pseudo_masks": _load_mask_files(cfg) if with_masks else (),
            "weak_augmentations": (
                build_augmentations(cfg, False) if is_train and uses_pseudo_labels(cfg) else None
            ),
            "inserter": build_lesion_inserter(cfg) if is_train else None,
        }

    def _check(self) -> None:
        """Check values that would otherwise fail at the first image, in a worker."""
        if self.mask_method not in ("", *METHODS):
            raise ValueError(
                f"INPUT.PSEUDO_MASK: found {self.mask_method!r}, expected one of {list(METHODS)}"
            )
        if self.num_slices < 1 or self.num_slices % 2 == 0:
            raise ValueError(
                f"INPUT.CT.NUM_SLICES: found {self.num_slices}, expected an odd number"
            )
        if not self.slice_interval >= 0:
            raise ValueError(
                f"INPUT.CT.SLICE_INTERVAL: found {self.slice_interval}, expected 0 mm or more"
            )
        low, high = self.hu_window
        if not low < high:
            raise ValueError(f"INPUT.CT.HU_WINDOW: found ({low}, {high}), expected low < high")

    def __setstate__(self, state: dict) -> None:
        # Unpickled in a worker that was not forked: OpenCV would start one thread per core.
        self.__dict__.update(state)
        cv2.setNumThreads(0)

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one dict to Detectron2's model input.

        Args:
            dataset_dict: a dict of :func:`load_deeplesion`; not modified. If ``spacing`` is None,
                the neighboring slices are used without interpolation.

        Returns:
            A copy with ``image``, float32 (C, H, W) on the 0..255 scale; if borders are cropped,
            with ``crop``: (x0, y0, x1, y1) in integer pixels of the slice on disk, ends exclusive
            (``height`` and ``width`` remain the slice's). In training with ``instances``:
            ``gt_boxes``, ``gt_classes`` and, if masks are enabled, ``gt_masks``. In inference, if
            masks are enabled, with ``lesion_masks``: bool (m, height, width), one per annotation,
            on the slice as on disk.

            With a weak view in training also ``weak_image``, of the same kind, and
            ``slice_to_image``: (2, 3) float32, maps points (x, y) of the slice on disk to
            ``image``; integers are pixel centers. For dicts with ``hidden_annotations`` also
            ``hidden_boxes``, their Boxes on ``image``; for patches ``min_share``, see
            :func:`transform_lesions`.
        """
        dataset_dict = self.load(dataset_dict)
        for key in IMAGE_KEYS:
            if key in dataset_dict:
                dataset_dict[key] = hu_to_pixels(dataset_dict[key], self.hu_window)
        return dataset_dict

    def load(self, dataset_dict: dict) -> dict:
        """As :meth:`__call__`, but ``image`` is int16 in HU, half the bytes to copy to a GPU."""
        dataset_dict = dict(dataset_dict)
        annotations = dataset_dict.pop("annotations", [])
        regions, annotations = regions_of(annotations), lesions_of(annotations)
        hidden = dataset_dict.pop("hidden_annotations", None)
        spacing = dataset_dict["spacing"]
        if spacing is not None and not all(map(is_spacing, spacing)):
            raise ValueError(
                f"{dataset_dict['file_name']}: found spacing {spacing}, "
                f"expected x, y and z, each {EXPECTED_SPACING}"
            )
        negatives: list[dict] = []
        if self.is_train:
            mined = self.hard_negatives.get(dataset_dict["image_id"], ())
            negatives = [{"bbox_mode": BoxMode.XYXY_ABS, **n} for n in mined]
        inserted: list[dict] = []
        change = None
        if self.inserter is not None and self.inserter.is_drawn():
            known = [*annotations, *regions, *(hidden or ()), *negatives]
            change = partial(self.inserter, dataset_dict, known, inserted)
        stack, key_slice = self._read_slices(dataset_dict, change)
        annotations = [*annotations, *inserted]
        image = stack.transpose(1, 2, 0)  # a view: each channel stays contiguous
        transforms = T.TransformList([])
        if self.cut_borders:
            dataset_dict["crop"] = self._find_crop(dataset_dict, key_slice)
            transforms += crop_transform(dataset_dict["crop"], image.shape[:2])
            image = transforms.apply_image(image)
        boxes = None if self._min_share is None else _augmented_boxes(annotations, transforms)
        dataset_dict["image"], augmented = _view(image, spacing, self.augmentations, boxes)
        if self.is_train and self.weak_augmentations is not None:
            with numpy_state_kept():  # does not change the student's augmentations
                dataset_dict["weak_image"], _ = _view(image, spacing, self.weak_augmentations)
        transforms += augmented
        size = tuple(dataset_dict["image"].shape[1:])
        if "weak_image" in dataset_dict:
            dataset_dict["slice_to_image"] = _matrix(transforms)
            if self._min_share is not None:
                dataset_dict["min_share"] = self._min_share
            if hidden is not None:
                shown = transform_lesions(hidden, None, transforms, size, min_share=self._min_share)
                dataset_dict["hidden_boxes"] = split_regions(shown)[0].gt_boxes
        if self.is_train:
            annotations = [*regions, *annotations, *negatives]
            masks = None
            if self.mask_method:
                masks = self._masks(dataset_dict, annotations, key_slice)
            dataset_dict["instances"] = transform_lesions(
                annotations, masks, transforms, size, min_share=self._min_share
            )
        elif self.mask_method:
            masks = np.zeros((len(annotations), *_size_of(dataset_dict)), bool)
            made = self._masks(dataset_dict, annotations, key_slice)
            for out, mask in zip(masks, made, strict=True):
                out[:] = mask
            dataset_dict["lesion_masks"] = torch.from_numpy(masks)
        return dataset_dict

    def read_stack(self, dataset_dict: dict) -> np.ndarray:
        """Read the slices of an image, (C, H, W) int16 in HU, as on disk.

        They are clipped to the window; see :func:`slice_stack`.
        """
        return self._read_slices(dataset_dict)[0]

    def _read_slices(
        self, dataset_dict: dict, change: SliceChange | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The stack, and the key slice (H, W), which is not clipped."""
        return stack_and_key_slice(
            dataset_dict["file_name"],
            num_slices=self.num_slices,
            interval=self.slice_interval,
            spacing_z=None if dataset_dict["spacing"] is None else dataset_dict["spacing"][2],
            slice_range=dataset_dict["slice_range"],
            window=self.hu_window,
            size=_size_of(dataset_dict),
            change=change,
        )

    def _find_crop(self, dataset_dict: dict, key_slice: np.ndarray) -> tuple[int, int, int, int]:
        """The crop of the slices; ``key_slice`` (H, W) in HU, not clipped."""
        if "volume" in dataset_dict:
            return volume_crop(dataset_dict)
        spacing = _spacing_or_usual(dataset_dict)
        return body_extent(key_slice, spacing)

    def _masks(
        self, dataset_dict: dict, annotations: list[dict], key_slice: np.ndarray
    ) -> list[np.ndarray]:
        """The annotations' masks, (H, W) each, on the slice as on disk."""
        lesions = [a for a in lesions_of(annotations) if "segmentation" not in a]
        computed = iter(self._pseudo_masks(dataset_dict, lesions, key_slice) if lesions else ())
        masks, size = [], _size_of(dataset_dict)
        for a in annotations:
            if "segmentation" in a:
                masks.append(_decode(a["segmentation"], dataset_dict["file_name"], size))
            elif is_region(a):
                masks.append(_box_mask(a, size))
            else:
                masks.append(next(computed))
        return masks

    def _pseudo_masks(
        self, dataset_dict: dict, lesions: list[dict], key_slice: np.ndarray
    ) -> list[np.ndarray]:
        if not self.pseudo_mask_from_box and not all("recist" in a for a in lesions):
            raise ValueError(
                f"{dataset_dict['file_name']}: found a lesion with neither a mask nor diameters, "
                "expected one of them (INPUT.PSEUDO_MASK_FROM_BOX is False)"
            )
        for stored in self.pseudo_masks:
            if stored.covers(dataset_dict["image_id"]):
                return [stored.mask(dataset_dict, a) for a in lesions]
        size, pixels = _size_of(dataset_dict), None
        if self.mask_method == "grabcut":
            pixels = grabcut_image(key_slice, dataset_dict["window"])
        found = [
            pseudo_mask(self.mask_method, pixels, lesion_ends(a), xyxy_box(a), size)
            for a in lesions
        ]
        self._count(found)
        return [mask for mask, _ in found]

    def _count(self, found: list[PseudoMask]) -> None:
        """Log the number of fallbacks to the ellipse each time the number of masks doubles."""
        before = self._num_fallbacks
        self._num_masks += len(found)
        self._num_fallbacks += sum(mask.fell_back for mask in found)
        if self._num_fallbacks.bit_length() > before.bit_length():
            logger.info(
                f"GrabCut fell back to the ellipse for {self._num_fallbacks} of {self._num_masks} "
                "masks in this loader process"
            )


def _view(
    image: np.ndarray,
    spacing: tuple[float, float, float] | None,
    augmentations: T.AugmentationList,
    boxes: np.ndarray | None = None,
) -> tuple[torch.Tensor, T.Transform]:
    """Augment an image (H, W, C); returns (C, h, w) and the applied transforms.

    ``boxes`` (n, 4), in Detectron2's coordinates, are for augmentations that use boxes.
    """
    aug_input = SliceInput(image, boxes=boxes, spacing=spacing)
    transforms = augmentations(aug_input)
    return torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))), transforms


def _augmented_boxes(annotations: list[dict], transforms: T.TransformList) -> np.ndarray:
    """(n, 4) boxes of lesions after the given transforms, for further augmentations."""
    boxes = annotation_boxes(annotations)
    return transforms.apply_box(boxes + 0.5) if len(boxes) else boxes


def _matrix(transforms: T.Transform) -> torch.Tensor:
    """The (2, 3) matrix of affine transforms, for points with integers at pixel centers."""
    corner, right, below = transforms.apply_coords(np.array([[0.5, 0.5], [1.5, 0.5], [0.5, 1.5]]))
    matrix = np.column_stack([right - corner, below - corner, corner - 0.5])
    return torch.from_numpy(matrix.astype(np.float32))


def volume_crop(dataset_dict: dict) -> tuple[int, int, int, int]:
    """Return the crop of all slices of a dict's volume, their :func:`volume_extent`."""
    slice_range = dataset_dict["slice_range"]
    slice_range = None if slice_range is None else tuple(slice_range)
    folder = os.path.dirname(dataset_dict["file_name"])
    return volume_extent(folder, slice_range, _spacing_or_usual(dataset_dict))


def _spacing_or_usual(dataset_dict: dict) -> tuple[float, float]:
    """x and y, mm."""
    spacing = dataset_dict["spacing"]
    return _USUAL_SPACING if spacing is None else tuple(spacing[:2])


def crop_transform(crop: tuple[int, int, int, int], size: tuple[int, int]) -> T.CropTransform:
    """Make the transform from slices of (height, width) to ``crop`` (ends exclusive)."""
    x0, y0, x1, y1 = crop
    height, width = size
    return T.CropTransform(x0, y0, x1 - x0, y1 - y0, width, height)


def _load_mask_files(cfg) -> tuple[PseudoMasks, ...]:
    files = tuple(map(load_mask_file, cfg.INPUT.PSEUDO_MASK_FILES))
    for masks in files:
        if masks.info["method"] != cfg.INPUT.PSEUDO_MASK:
            raise ValueError(
                f"{masks.path}: found masks by {masks.info['method']!r}, "
                f"expected {cfg.INPUT.PSEUDO_MASK!r} (INPUT.PSEUDO_MASK)"
            )
    return files


def _decode(rle: object, file_name: str, size: tuple[int, int]) -> np.ndarray:
    """Decode a mask of a data set's dict or of a checkpoint, (H, W) bool."""
    try:
        return decode_mask(rle, size)
    except ValueError as error:
        raise ValueError(f"{file_name}: segmentation: {error}") from None


def _box_mask(annotation: dict, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8: 1 at pixels with their center inside the annotation's box."""
    x1, y1, x2, y2 = xyxy_box(annotation)
    y, x = np.ogrid[: size[0], : size[1]]
    return ((x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)).astype(np.uint8)


def _size_of(dataset_dict: dict) -> tuple[int, int]:
    """Height and width of the slice on disk."""
    return dataset_dict["height"], dataset_dict["width"]
