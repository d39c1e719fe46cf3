"""The keys that this project adds to Detectron2's config, with their defaults."""

from detectron2.config import CfgNode as CN

from .old_keys import OLD_KEYS
from .volumetric import add_volumetric_config, is_volumetric

#: False positives per image of the published tables.
FROC_RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

# More slices than any image has: an upper limit, to save memory.
_MAX_SLICES = 999


def add_lesion_config(cfg: CN) -> None:
    """Add all keys of this project to Detectron2's config, with their defaults.

    Use this to combine the keys with those of other projects. Otherwise use
    :func:`~lesion_d2.config.get_lesion_config`: Detectron2's node runs code that a YAML file names.
    It also lacks the merging of :class:`~lesion_d2.config.LesionConfig`: an old name of a key is an
    error that names the new one, epochs always take precedence over iterations, and one value of
    MODEL.PIXEL_MEAN applies to all slices only after :func:`broadcast_pixel_values`.

    Args:
        cfg: the node of :func:`detectron2.config.get_cfg`; modified in place.
    """
    _add_ct_config(cfg)
    _add_mask_config(cfg)
    _add_augmentation_config(cfg)
    _add_inserted_lesions_config(cfg)
    _add_patch_config(cfg)
    _add_dataset_config(cfg)
    _add_backbone_config(cfg)
    _add_one_stage_config(cfg)
    _add_slice_images_config(cfg)
    _add_rcnn_config(cfg)
    _add_mean_teacher_config(cfg)
    _add_training_config(cfg)
    _add_hard_negatives_config(cfg)
    _add_ensemble_config(cfg)
    _add_volume_config(cfg)
    add_volumetric_config(cfg)
    for old, new in OLD_KEYS.items():
        if not cfg.key_is_renamed(old):
            cfg.register_renamed_key(old, new)


def _add_ct_config(cfg: CN) -> None:
    cfg.INPUT.CT = CN()
    # C, the slices of one image: odd, the key slice in the middle. MODEL.PIXEL_MEAN and PIXEL_STD
    # have C values, or one for all slices.
    cfg.INPUT.CT.NUM_SLICES = 3
    # Distance between the slices of one image, in mm; 0 for neighboring slices at any distance.
    cfg.INPUT.CT.SLICE_INTERVAL = 2.0
    # Hounsfield units that are mapped to 0 and 255 (the window of Zlocha et al., section 3.1).
    cfg.INPUT.CT.HU_WINDOW = (-1024.0, 1050.0)
    # The longer image side, in pixels; 0 keeps the size.
    cfg.INPUT.CT.IMAGE_SIZE = 512
    # Pixel size in mm to resample to; 0 resizes to IMAGE_SIZE instead.
    cfg.INPUT.CT.PIXEL_SPACING = 0.0
    # Maximum of the longer image side, in pixels; 0 for no limit.
    cfg.INPUT.CT.MAX_SIZE = 0
    # Crop slices to the body, without the black borders around it, before anything is resized.
    cfg.INPUT.CT.CROP_TO_BODY = False


def _add_mask_config(cfg: CN) -> None:
    # Pixels of the slice by which annotated boxes surround their lesions (DeepLesion: 5). Boxes of
    # masks (DetUNet, calibration) and of inserted lesions have this margin, and findings measured
    # on boxes are smaller by it.
    cfg.INPUT.BOX_MARGIN = 5.0

    # Training masks from RECIST diameters, for models that learn masks and data sets without masks:
    # "ellipse" (Tang et al., 2.1) or "grabcut" (Zlocha et al., 2.2).
    cfg.INPUT.PSEUDO_MASK = "ellipse"
    # Whether lesions without diameters get such masks too, from the ellipse inscribed in their box;
    # False refuses data sets with such lesions.
    cfg.INPUT.PSEUDO_MASK_FROM_BOX = True
    # Files written by lesion_d2.tools.prepare_masks; other masks are computed on the fly.
    cfg.INPUT.PSEUDO_MASK_FILES = ()


def _add_augmentation_config(cfg: CN) -> None:
    # Augmentation in training (defaults: Zlocha et al., section 3.1). 0 disables a part.
    cfg.INPUT.AUG = CN()
    cfg.INPUT.AUG.HFLIP_PROB = 0.5
    cfg.INPUT.AUG.VFLIP_PROB = 0.5
    cfg.INPUT.AUG.MAX_ROTATION = 0.1  # radians, in both directions
    cfg.INPUT.AUG.MAX_SHEAR = 0.1  # radians, in both directions
    cfg.INPUT.AUG.MAX_SCALE = 0.1  # fraction of the size, in both directions
    cfg.INPUT.AUG.MAX_TRANSLATION = 0.1  # fraction of the image side, in both directions
    # Range of random factors of the image size in training.
    cfg.INPUT.AUG.RESIZE_RANGE = (1.0, 1.0)


def _add_inserted_lesions_config(cfg: CN) -> None:
    # Synthetic lesions inserted into training images (lesion_d2.data.inserted), in addition to
    # annotated ones, if there is room. Images without annotations are included if
    # DATALOADER.FILTER_EMPTY_ANNOTATIONS is False. Boxes surround their diameters by
    # INPUT.BOX_MARGIN.
    cfg.INPUT.INSERTED_LESIONS = CN()
    cfg.INPUT.INSERTED_LESIONS.PROBABILITY = 0.0  # of an image; 0 disables them
    # Maximum number per image; at least one.
    cfg.INPUT.INSERTED_LESIONS.MAX_LESIONS = 2
    # DeepLesion's coarse types to sample from, out of 2, 3, 4, 5, 7 and 8; () for all of these.
    cfg.INPUT.INSERTED_LESIONS.TYPES = ()
    # One class for all of them, or eight classes for the coarse types 1 to 8.
    cfg.INPUT.INSERTED_LESIONS.CATEGORIES = (0,)
    cfg.INPUT.INSERTED_LESIONS.MEDIAN_DIAMETER = 16.0  # mm
    cfg.INPUT.INSERTED_LESIONS.MOTTLE_HU = 5.0  # texture, HU


def _add_patch_config(cfg: CN) -> None:
    # Random patches of training images, to save memory. Inference uses whole images, or tiles
    # (TEST.ENSEMBLE.TILE_SIZE).
    cfg.INPUT.PATCH = CN()
    # Height and width, in pixels of the model's input; (0, 0) for whole images. Smaller images are
    # padded with the low end of the HU window.
    cfg.INPUT.PATCH.SIZE = (0, 0)
    # Probability that the patch of an image with lesions contains one of them, completely if it
    # fits, at a random position; otherwise the patch is random.
    cfg.INPUT.PATCH.FOREGROUND_PROB = 0.5


def _add_dataset_config(cfg: CN) -> None:
    # Loader processes for each training process; -1 for one less than its number of cores, from 1
    # to 16. Augmentations for a SEED depend on this number.
    cfg.DATALOADER.NUM_WORKERS = -1

    # Ratio of images without a lesion to all images of an epoch, drawn from all of them in turn;
    # below 0: the ratio in the data sets. DATALOADER.FILTER_EMPTY_ANNOTATIONS True, the default of
    # Detectron2, leaves them all out.
    cfg.DATALOADER.EMPTY_IMAGE_RATIO = -1.0
    # Draw images of every class of lesions equally often. The number of images with lesions in an
    # epoch does not change.
    cfg.DATALOADER.CLASS_BALANCE = False

    # Skip (and count) images whose files are missing, instead of stopping before training.
    cfg.DATASETS.ALLOW_MISSING = False
    # Read slices of data sets in DeepLesion's layout from Images_prepared, written by
    # lesion_d2.tools.prepare_slices: the same pixels as in Images_png, in less time. Slices that
    # were not prepared, or have changed since, are an error.
    cfg.DATASETS.PREPARED_SLICES = False
    # Simulated missing annotations: the share of the annotations of DATASETS.TRAIN that training
    # does not see, drawn at random by the seed.
    cfg.DATASETS.MISSING_ANNOTATION_RATIO = 0.0
    cfg.DATASETS.MISSING_ANNOTATION_SEED = 0
    # Data sets of volumes whose series are excluded from training: Bai et al.'s validation volumes
    # are from DeepLesion's training set (2023, section III-A). Those in DATASETS.TRAIN are kept.
    cfg.DATASETS.EXCLUDED_VOLUMES = ()


def _add_backbone_config(cfg: CN) -> None:
    # Channels-last memory layout on a GPU, which is faster with mixed precision
    # (SOLVER.AMP.ENABLED). On a CPU, 2-D models always use it.
    cfg.MODEL.CHANNELS_LAST = False

    cfg.MODEL.VGG = CN()
    cfg.MODEL.VGG.DEPTH = 19  # 16 or 19, as in torchvision
    cfg.MODEL.VGG.BATCH_NORM = False
    # Channels of the first stage; those of the others are in proportion, at most 8 times as many.
    cfg.MODEL.VGG.WIDTH = 64
    # Stages that end with pooling. Without the fourth and the fifth, c3 to c5 have stride 8, and c5
    # is relu5_3 (3DCE).
    cfg.MODEL.VGG.POOLED_STAGES = (1, 2, 3, 4, 5)

    cfg.MODEL.UNET_FPN = CN()
    # Channels of P1 and P0, the levels that only the segmentation uses.
    cfg.MODEL.UNET_FPN.DECODER_CHANNELS = (64, 32)
    # Their normalization, as in MODEL.FPN.NORM.
    cfg.MODEL.UNET_FPN.DECODER_NORM = ""
    # Upsampling of P2 and P1: "nearest", as in an FPN, or "bilinear" (code of Jaeger et al.).
    cfg.MODEL.UNET_FPN.UPSAMPLING = "nearest"
    # Channels of C0, two 3x3 convolutions at full resolution before a ResNet, which are also P0's
    # skip connection (code of Jaeger et al.); 0 for none: the ResNet's input is then the image, and
    # P0's skip connection has separate convolutions.
    cfg.MODEL.UNET_FPN.C0_CHANNELS = 0
    # An attention gate on every skip connection (Zlocha et al., section 2.3).
    cfg.MODEL.UNET_FPN.ATTENTION = False


def _add_one_stage_config(cfg: CN) -> None:
    # Whether the best anchors of a lesion are positive below MODEL.RETINANET.IOU_THRESHOLDS too, as
    # in Detectron2. If False, a lesion without a positive anchor is learned as background (as in
    # keras-retinanet, on which Zlocha et al. build). For LesionRetinaNet and RetinaUNet.
    cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES = True
    # ATSS matching instead of IOU_THRESHOLDS: number of positions per level whose anchors are
    # candidates (Zhang et al., 2020: 9; nnDetection: 4); 0 disables it. CENTER_INSIDE (Zhang et
    # al.): the centers of positive anchors must be in the lesion's box.
    cfg.MODEL.RETINANET.ATSS_CANDIDATES = 0
    cfg.MODEL.RETINANET.ATSS_CENTER_INSIDE = False

    # The segmentation of RetinaUNet, of DetUNet, and of LesionRCNN with its SEG_LOSS_WEIGHT.
    # (SEM_SEG_HEAD is that of Detectron2's own models.)
    cfg.MODEL.SEG_HEAD = CN()
    # "ce_dice": pixel-wise cross entropy plus soft Dice (Jaeger et al., equation (1)); "focal":
    # focal loss on the pixel-wise cross entropy (Zlocha et al., section 2.3) with the next two: the
    # weight of lesion pixels (0.5: masks are not biased) and the exponent.
    cfg.MODEL.SEG_HEAD.LOSS_TYPE = "ce_dice"
    cfg.MODEL.SEG_HEAD.FOCAL_ALPHA = 0.5
    cfg.MODEL.SEG_HEAD.FOCAL_GAMMA = 2.0
    # Target of the segmentation: lesions against background (the authors' Retina U-Net), or
    # separate classes (their U-Faster R-CNN+; required for DetU-Net). With one class there is no
    # difference.
    cfg.MODEL.SEG_HEAD.CLASS_AGNOSTIC = False
    # Whether predictions of RetinaUNet and DetUNet carry masks; without, P1 and P0 are only
    # computed at inference where CALIBRATION needs them, and for DetUNet.
    cfg.MODEL.SEG_HEAD.PREDICT_MASKS = False

    cfg.MODEL.RETINA_UNET = CN()
    # Weight of the segmentation loss; 0 disables it.
    cfg.MODEL.RETINA_UNET.SEG_LOSS_WEIGHT = 1.0
    # Strength of score calibration by the agreement of a detection's box with its mask, from 0
    # (none) to 1 (Zlocha et al., section 2.2).
    cfg.MODEL.RETINA_UNET.CALIBRATION = 0.0
    # Mutually exclusive classes: a softmax over them and the background instead of sigmoids (Jaeger
    # et al., section 3.1).
    cfg.MODEL.RETINA_UNET.SOFTMAX = False
    # Stochastic hard example mining (Jaeger et al., section 4.2) instead of the focal loss: as many
    # negative anchors as positive ones, drawn from a pool of the hardest, whose size is this factor
    # times their number; 0 disables it.
    cfg.MODEL.RETINA_UNET.SHEM_POOL = 0
    # Maximum number of positive anchors per image with it, drawn at random; 0 for all.
    cfg.MODEL.RETINA_UNET.SHEM_POSITIVES = 0
    # Negatives of the batch for each of its positives with it, and the mean over all samples
    # (nnDetection: 2); 0 for one negative per positive of each image, with positives and negatives
    # weighted equally (Jaeger et al.).
    cfg.MODEL.RETINA_UNET.SHEM_NEGATIVES = 0

    cfg.MODEL.DET_UNET = CN()
    # Number of connected components that become detections, the largest of an image (Jaeger et al.,
    # section 4.1).
    cfg.MODEL.DET_UNET.MAX_COMPONENTS = 5


def _add_slice_images_config(cfg: CN) -> None:
    # 3 M slices as M three-channel images, which share one backbone.
    cfg.MODEL.SLICE_IMAGES = CN()
    # The backbone for three channels, within MODEL.BACKBONE.NAME build_slice_images_backbone or
    # build_fused_fpn_backbone.
    cfg.MODEL.SLICE_IMAGES.BACKBONE = "build_vgg_backbone"
    # Number of three-slice images whose features are cached for the next key slices in evaluations
    # of volumes (four times as many with mirrored views); 0 disables the cache. With slices at 2
    # and 1 mm, every image is used for M key slices, which needs 3 M and 6 M; at 5 mm hardly any is
    # shared.
    cfg.MODEL.SLICE_IMAGES.FEATURE_CACHE_SIZE = 64

    # torchvision's DenseNets; the defaults are those of its 121.
    cfg.MODEL.DENSENET = CN()
    cfg.MODEL.DENSENET.DEPTH = 121  # 121, 169 or 201
    # Number of dense blocks: 3 is the truncated DenseNet of Bai et al., section III-B.
    cfg.MODEL.DENSENET.NUM_BLOCKS = 3
    # Channels of the stem, and channels added by every layer.
    cfg.MODEL.DENSENET.STEM_CHANNELS = 64
    cfg.MODEL.DENSENET.GROWTH_RATE = 32
    # Recompute concatenations in the backward pass instead of keeping them: less memory, more time.
    cfg.MODEL.DENSENET.MEMORY_EFFICIENT = False


def _add_rcnn_config(cfg: CN) -> None:
    # Detectron2's RPN with annotations to ignore, whose class is below 0.
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LesionRPN"

    cfg.MODEL.LESION_RCNN = CN()
    # Weight of a segmentation loss (MODEL.SEG_HEAD.LOSS_TYPE) on the U-FPN of a two-stage
    # detector (U-Faster R-CNN+ of Jaeger et al., section 4.1); 0 disables it.
    cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT = 0.0
    # Stochastic hard example mining (Jaeger et al., section 4.2) in the RPN and in the heads of
    # MODEL.ROI_HEADS.NAME LesionROIHeads: the number of negatives follows from POSITIVE_FRACTION,
    # at least one, drawn from a pool of the hardest, this factor times their number; 0 disables it.
    cfg.MODEL.LESION_RCNN.SHEM_POOL = 0

    # 3DCE on an R-FCN (Yan et al., MICCAI 2018), with the attention of Tao et al. (2019).
    cfg.MODEL.RFCN_3DCE = CN()
    # Attention over the M images at a position (section 2.1), and over the positions of an image
    # (2.2), with the temperatures of their softmax.
    cfg.MODEL.RFCN_3DCE.CONTEXTUAL_ATTENTION = False
    cfg.MODEL.RFCN_3DCE.CONTEXTUAL_TEMPERATURE = 2.0
    cfg.MODEL.RFCN_3DCE.SPATIAL_ATTENTION = False
    cfg.MODEL.RFCN_3DCE.SPATIAL_TEMPERATURE = 3.0
    # Score maps per image for each of the POOLER_RESOLUTION^2 bins of a region.
    cfg.MODEL.RFCN_3DCE.NUM_SCORE_MAPS = 10

    cfg.MODEL.ULDOR = CN()
    # Whether detections of the last class, false positives, count as lesions that rank below all
    # others (Tang et al., section 3.2: "HNEM + FP"), or are dropped.
    cfg.MODEL.ULDOR.COUNT_FALSE_POSITIVES = False


def _add_mean_teacher_config(cfg: CN) -> None:
    # Mean teacher for training with missing annotations (Bai et al., 2023), for any
    # meta-architecture. The student is trained; the teacher, its moving average, is evaluated and
    # saved.
    cfg.MODEL.MEAN_TEACHER = CN()
    cfg.MODEL.MEAN_TEACHER.ENABLED = False
    # Momentum of the teacher's moving average.
    cfg.MODEL.MEAN_TEACHER.MOMENTUM = 0.999
    # How pseudo-labels are used: "add" (as annotations), "ignore" (anchors and proposals on them
    # are ignored) or "none" (no pseudo-labels: the teacher is only the student's moving average).
    cfg.MODEL.MEAN_TEACHER.PSEUDO_LABELS = "add"
    # No pseudo-labels before this iteration.
    cfg.MODEL.MEAN_TEACHER.START_ITER = 0
    # Minimum score of a pseudo-label (tau).
    cfg.MODEL.MEAN_TEACHER.SCORE_THRESH = 0.9
    # Detections with a higher IoU with an annotated lesion are no pseudo-labels (GT NMS).
    cfg.MODEL.MEAN_TEACHER.GT_NMS_THRESH = 0.7


def _add_training_config(cfg: CN) -> None:
    # Epochs instead of iterations: if set, they replace the Detectron2 key in the comment. A file
    # or command line with that key unsets the epochs of the config that it is merged into
    # (epochs.py).
    cfg.SOLVER.MAX_EPOCHS = 0.0  # SOLVER.MAX_ITER
    cfg.SOLVER.STEP_EPOCHS = ()  # SOLVER.STEPS
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0.0  # SOLVER.CHECKPOINT_PERIOD
    # Number of checkpoints of SOLVER.CHECKPOINT_PERIOD that a run keeps, the last ones, beside the
    # best ones and model_final.pth; 0 keeps all.
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 2
    # Format of checkpoints: "pth" (torch.save), or "safetensors".
    cfg.SOLVER.CHECKPOINT_FORMAT = "pth"
    cfg.TEST.EVAL_EPOCHS = 0.0  # TEST.EVAL_PERIOD
    cfg.TEST.LOSS_EPOCHS = 0.0  # TEST.LOSS_PERIOD
    # "SGD" (Detectron2's), "Adam" or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE can be "full_model_norm", the total norm of all gradients, in
    # addition to Detectron2's "value" and "norm", which clips each parameter's gradient separately.

    # Fused optimizer step, only on a GPU (on a CPU it would change the numbers). A resumed run
    # keeps the setting of its start.
    cfg.SOLVER.FUSED = True
    # torch.compile of the backbone and the head in training: faster steps on a GPU, but compiling
    # takes a minute or more, and again for every new image size. Losses differ by rounding.
    cfg.SOLVER.COMPILE = False
    # Layers and factors of their learning rate, such as [["box_head.fc1", 2.0]]. If
    # SOLVER.BIAS_LR_FACTOR is not 1, biases have only that factor.
    cfg.SOLVER.LR_FACTORS = ()
    # Reduce-on-plateau: number of evaluations without improvement after which the learning rate is
    # multiplied by PLATEAU_FACTOR; 0 disables it.
    cfg.SOLVER.PLATEAU_PATIENCE = 0
    cfg.SOLVER.PLATEAU_FACTOR = 0.1
    # Early stopping: number of evaluations without improvement after which training ends; 0
    # disables it.
    cfg.SOLVER.EARLY_STOP_PATIENCE = 0
    # Metric of both and of model_best.pth: "" for TEST.BEST_METRIC, or "validation_loss".
    cfg.SOLVER.PATIENCE_METRIC = ""
    # Iterations between computations of the loss on DATASETS.TEST; 0 disables them.
    cfg.TEST.LOSS_PERIOD = 0
    # Batch size of evaluations, in images or tiles of a volume. Only images of the same size share
    # a batch, so results differ only by rounding. Use more than 1 on a GPU.
    cfg.TEST.IMS_PER_BATCH = 1
    # Metric that selects the best checkpoint, as "task/metric" of the validation results.
    cfg.TEST.BEST_METRIC = "bbox/AP50"
    # Number of best checkpoints to keep in OUTPUT_DIR/best, for TEST.ENSEMBLE.CHECKPOINTS, by the
    # metric that selects model_best.pth; 0 keeps none.
    cfg.TEST.NUM_BEST_CHECKPOINTS = 0
    # Bootstrap samples of patients for the 95 % intervals of the FROC table; 0 disables them.
    cfg.TEST.NUM_BOOTSTRAP = 1000
    # Measure box sides as x2 - x1 + 1 in every FROC and AP, as in the published evaluation of 3DCE
    # and Lesion-Harvester. Small boxes are then hits more easily.
    cfg.TEST.INCLUSIVE_BOXES = False
    # Write masks of detections to coco_instances_results.json, for pictures, even if the data set
    # has no masks to score them: some 20 ms per image. Evaluations compute masks only if they are
    # scored or written.
    cfg.TEST.WRITE_MASKS = False


def _add_hard_negatives_config(cfg: CN) -> None:
    # Hard negatives (Tang et al., section 2.2): false positives on training images become instances
    # of a separate class.
    cfg.HARD_NEGATIVES = CN()
    cfg.HARD_NEGATIVES.PERIOD = 0  # iterations between minings; 0 disables mining
    cfg.HARD_NEGATIVES.EPOCHS = 0.0  # replaces HARD_NEGATIVES.PERIOD if set
    cfg.HARD_NEGATIVES.START_ITER = 0  # iterations without mining
    cfg.HARD_NEGATIVES.START_EPOCHS = 0.0  # replaces HARD_NEGATIVES.START_ITER if set
    # Data sets of DATASETS.TRAIN to mine on, such as fully annotated ones; () for all of them.
    cfg.HARD_NEGATIVES.DATASETS = ()
    cfg.HARD_NEGATIVES.MAX_PER_IMAGE = 3
    # A detection is positive, a hit, above this mask IoU with a pseudo-mask or, for models without
    # masks, above this box IoU with a lesion.
    cfg.HARD_NEGATIVES.POSITIVE_IOU_THRESH = 0.3
    # In images without a positive detection, those with a score above this are false positives.
    cfg.HARD_NEGATIVES.MIN_SCORE = 0.7


def _add_ensemble_config(cfg: CN) -> None:
    # Test-time ensembles (Jaeger et al., sections 3.2 and 4.2), with --eval-only and in prediction.
    # Evaluations during training use only the model.
    cfg.TEST.ENSEMBLE = CN()
    cfg.TEST.ENSEMBLE.ENABLED = False
    # Four views: the image, and flipped along x, along y, and along both. Eight for volumes.
    cfg.TEST.ENSEMBLE.MIRRORS = True
    # Files of weights, or folders of TEST.NUM_BEST_CHECKPOINTS, instead of MODEL.WEIGHTS; () for
    # MODEL.WEIGHTS.
    cfg.TEST.ENSEMBLE.CHECKPOINTS = ()
    # Side of the tiles for larger images, in pixels of the model's input; 0 for no tiles. For
    # volumes, use TEST.VOLUME_TILE_SIZE.
    cfg.TEST.ENSEMBLE.TILE_SIZE = 0
    # Minimum overlap of neighboring tiles, as a fraction of their side.
    cfg.TEST.ENSEMBLE.TILE_OVERLAP = 0.5
    # How detections of views are combined: "wbc" (weighted box clustering) or "nms".
    cfg.TEST.ENSEMBLE.CONSOLIDATION = "wbc"
    # IoU with the best box above which detections are merged.
    cfg.TEST.ENSEMBLE.IOU_THRESH = 0.2
    # The same with tiles. The box of a part of a lesion in a tile has a low IoU with the lesion's
    # box; with the authors' threshold it is merged.
    cfg.TEST.ENSEMBLE.TILE_IOU_THRESH = 1e-5


def _add_volume_config(cfg: CN) -> None:
    # How boxes of slices are linked to 3-D boxes: "merge" (Jaeger et al., section 4.2) or "track"
    # (Bai et al., section II: a Kalman filter along z).
    cfg.TEST.LINKING = "merge"
    # IoU with the best box above which "merge" links boxes.
    cfg.TEST.MERGE_IOU_THRESH = 0.1
    cfg.TEST.TRACKING = CN()
    # Minimum IoU of a box with the predicted one for "track" to link them.
    cfg.TEST.TRACKING.IOU_THRESH = 0.3
    # Maximum number of consecutive slices of a lesion without a box.
    cfg.TEST.TRACKING.MAX_GAP = 1
    # Criteria of a hit in 3-D: overlap@threshold, with "iou", "iobb" (intersection over the
    # detected box) and "p3d" (IoU of the linked box on the lesion's key slice with the lesion's
    # box, 0 without one; Cai et al., 2020). Results of "volume" are those of the first criterion.
    cfg.TEST.VOLUME_CRITERIA = ("iou@0.1",)
    # Rates of false positives per volume in the FROC table.
    cfg.TEST.VOLUME_FROC_RATES = FROC_RATES
    # Average precision in 3-D: "coco" (101 recalls; a detection matches one lesion) or "all_points"
    # (area under the interpolated curve, every repeated hit is an error; Cai et al., 2020).
    cfg.TEST.VOLUME_AP = "coco"


def broadcast_pixel_values(cfg: CN) -> dict[str, list[float]]:
    """Repeat one value of MODEL.PIXEL_MEAN, or of PIXEL_STD, for every slice of an image.

    Models of volumes have one channel for any INPUT.CT.NUM_SLICES.

    Args:
        cfg: changed in place, before a model is built.

    Returns:
        The keys that had one value, such as "PIXEL_MEAN", and what they have now.
    """
    num_slices = 1 if is_volumetric(cfg) else cfg.INPUT.CT.NUM_SLICES
    repeated = {}
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        values = list(cfg.MODEL[key])
        if len(values) == 1 and 1 <= num_slices <= _MAX_SLICES:
            cfg.MODEL[key], repeated[key] = num_slices * values, num_slices * values
    return repeated


def uses_pseudo_labels(cfg: CN) -> bool:
    """Whether training uses pseudo-labels of a mean teacher."""
    options = cfg.MODEL.MEAN_TEACHER
    return options.ENABLED and options.PSEUDO_LABELS != "none"


def trains_on_masks(cfg: CN) -> bool:
    """Whether training needs the lesions' masks: for a mask head, a segmentation loss or both.

    MODEL.MASK_ON would give U-Faster R-CNN+ a mask head as well.
    """
    return cfg.MODEL.MASK_ON or cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT > 0
