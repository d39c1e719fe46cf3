"""Keys of the detectors in 3-D (Jaeger et al., 2018), which take patches of volumes for images."""

from detectron2.config import CfgNode as CN


def add_volumetric_config(cfg: CN) -> None:
    """Add the keys of volumetric detectors, with their defaults.

    Sizes and strides are depth, height, width: the order of a tensor's axes.

    Args:
        cfg: the node; changed in place.
    """
    cfg.INPUT.VOLUME = CN()
    # Depth, height and width of the patches that training cuts out of volumes, in voxels of the
    # model's input; (0, 0, 0) for models of slices. INPUT.PATCH.FOREGROUND_PROB of them show a
    # lesion.
    cfg.INPUT.VOLUME.PATCH_SIZE = (0, 0, 0)
    # x, y, z in mm that volumes are resampled to; 0 leaves an axis as it is.
    cfg.INPUT.VOLUME.SPACING = (0.0, 0.0, 0.0)
    # Augmentation of patches, beside what INPUT.AUG says: its flips, and its rotation, shear, shift
    # and scale in-plane, the scale along z, too. RESIZE_RANGE is for images alone.
    cfg.INPUT.VOLUME.DEPTH_FLIP_PROB = 0.5
    # Elastic deformation in-plane: standard deviation of the displacements on a grid, and voxels
    # between its points; 0 switches it off, as in the authors' code in 3-D.
    cfg.INPUT.VOLUME.ELASTIC = 0.0
    cfg.INPUT.VOLUME.ELASTIC_GRID = 32
    # Largest standard deviation of noise, HU; largest change of all voxels, HU, and of their
    # distances from the mean, as a share. 0 switches a part off.
    cfg.INPUT.VOLUME.NOISE = 0.0
    cfg.INPUT.VOLUME.BRIGHTNESS = 0.0
    cfg.INPUT.VOLUME.CONTRAST = 0.0

    cfg.MODEL.VOLUMETRIC = CN()
    # Strides of the ResNet's stem, its max pooling, res3, res4 and res5. In-plane first strides are
    # for slices that are thicker than their pixels (Jaeger et al., in their code).
    cfg.MODEL.VOLUMETRIC.STRIDES = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    # Channels of the convolutions of heads (section 3.1).
    cfg.MODEL.VOLUMETRIC.HEAD_CHANNELS = 64
    # Depths of anchors in slices, by level as MODEL.ANCHOR_GENERATOR.SIZES: the i-th depth of a
    # level goes with its i-th size (section 4.2; three scales of each are the one-stage models').
    cfg.MODEL.VOLUMETRIC.ANCHOR_DEPTHS = [[1.0], [2.0], [4.0], [8.0]]
    # Slices that regions are pooled to for the box head and the mask head; in-plane it is
    # POOLER_RESOLUTION.
    cfg.MODEL.VOLUMETRIC.BOX_POOLER_DEPTH = 3
    cfg.MODEL.VOLUMETRIC.MASK_POOLER_DEPTH = 5
    # Side in the slice, in voxels, from which on regions of the two-stage models come from P4; from
    # half of it on from P3, from twice on from P5. Detectron2's 224 takes all that is below 112
    # from P2. Jaeger et al., in their code, go by the patch: its side times 2^-2.5, 22.6 of 128.
    cfg.MODEL.VOLUMETRIC.CANONICAL_SIZE = 224.0
    # Compute the backbone's activations again in the backward pass, in place of keeping them: less
    # memory, more time.
    cfg.MODEL.VOLUMETRIC.GRADIENT_CHECKPOINTING = False

    # Depth, height and width of the overlapping tiles that inference cuts volumes into;
    # (0, 0, 0) for INPUT.VOLUME.PATCH_SIZE. TEST.ENSEMBLE.TILE_OVERLAP and TILE_IOU_THRESH are
    # theirs, too.
    cfg.TEST.VOLUME_TILE_SIZE = (0, 0, 0)


def is_volumetric(cfg: CN) -> bool:
    """Whether a config's model looks at patches of volumes, not at slices."""
    return any(side != 0 for side in cfg.INPUT.VOLUME.PATCH_SIZE)
