"""Keys of the 3-D detectors (Jaeger et al., 2018), whose images are patches of volumes."""

from detectron2.config import CfgNode as CN


def add_volumetric_config(cfg: CN) -> None:
    """Add the keys of volumetric detectors, with their defaults.

    Sizes and strides are depth, height, width: the order of a tensor's axes.

    Args:
        cfg: the node; modified in place.
    """
    cfg.INPUT.VOLUME = CN()
    # Depth, height and width of training patches, in voxels of the model's input; (0, 0, 0) for 2-D
    # models. INPUT.PATCH.FOREGROUND_PROB is the probability of a patch with a lesion.
    cfg.INPUT.VOLUME.PATCH_SIZE = (0, 0, 0)
    # Spacing x, y, z in mm to which volumes are resampled; 0 keeps that of an axis.
    cfg.INPUT.VOLUME.SPACING = (0.0, 0.0, 0.0)
    # Augmentation of patches, in addition to INPUT.AUG: flips, rotation, shear, shift and scale
    # in-plane, and the scale also along z. RESIZE_RANGE is for 2-D images only.
    cfg.INPUT.VOLUME.DEPTH_FLIP_PROB = 0.5
    # Elastic deformation in-plane: standard deviation of the displacements on a grid, and voxels
    # between its points; 0 disables it, as in the authors' code in 3-D.
    cfg.INPUT.VOLUME.ELASTIC = 0.0
    cfg.INPUT.VOLUME.ELASTIC_GRID = 32
    # Maximum standard deviation of noise, HU; maximum change of all voxels, HU, and of their
    # distances from the mean, as a fraction. 0 disables a part.
    cfg.INPUT.VOLUME.NOISE = 0.0
    cfg.INPUT.VOLUME.BRIGHTNESS = 0.0
    cfg.INPUT.VOLUME.CONTRAST = 0.0

    cfg.MODEL.VOLUMETRIC = CN()
    # Strides of the ResNet's stem, its max pooling, res3, res4 and res5. The first strides are
    # in-plane, because slices are thicker than pixels (code of Jaeger et al.).
    cfg.MODEL.VOLUMETRIC.STRIDES = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    # Channels of the convolutions of heads (section 3.1).
    cfg.MODEL.VOLUMETRIC.HEAD_CHANNELS = 64
    # Depths of anchors in slices, by level like MODEL.ANCHOR_GENERATOR.SIZES: the i-th depth of a
    # level is paired with its i-th size (section 4.2; one-stage models have three scales of each).
    cfg.MODEL.VOLUMETRIC.ANCHOR_DEPTHS = [[1.0], [2.0], [4.0], [8.0]]
    # Depth of pooled regions for the box head and the mask head; in-plane, it is POOLER_RESOLUTION.
    cfg.MODEL.VOLUMETRIC.BOX_POOLER_DEPTH = 3
    cfg.MODEL.VOLUMETRIC.MASK_POOLER_DEPTH = 5
    # In-plane side, in voxels, from which regions of two-stage models are assigned to P4; from half
    # of it to P3, from twice to P5. With Detectron2's 224, regions below 112 are assigned to P2.
    # The code of Jaeger et al. depends on the patch: its side times 2^-2.5, 22.6 for 128.
    cfg.MODEL.VOLUMETRIC.CANONICAL_SIZE = 224.0
    # Activation checkpointing of the backbone: less memory, more time.
    cfg.MODEL.VOLUMETRIC.GRADIENT_CHECKPOINTING = False

    # Depth, height and width of the overlapping tiles of volumes at inference; (0, 0, 0) for
    # INPUT.VOLUME.PATCH_SIZE. TEST.ENSEMBLE.TILE_OVERLAP and TILE_IOU_THRESH apply to them, too.
    cfg.TEST.VOLUME_TILE_SIZE = (0, 0, 0)


def is_volumetric(cfg: CN) -> bool:
    """Whether a config's model is for patches of volumes instead of slices."""
    return any(side != 0 for side in cfg.INPUT.VOLUME.PATCH_SIZE)
