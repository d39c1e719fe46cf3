"""The keys that this project adds to Detectron2's config, with their defaults."""

from detectron2.config import CfgNode as CN

from .old_keys import OLD_KEYS
from .volumetric import add_volumetric_config, is_volumetric

#: False positives per image of the published tables.
FROC_RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

# More slices than any image has, whose means would only fill memory.
_MAX_SLICES = 999


def add_lesion_config(cfg: CN) -> None:
    """Add every key that this project has beside Detectron2's own, with its default.

    For a config that others' keys are in, too. Detectron2's node runs the code that a file names:
    :func:`~lesion_d2.config.get_lesion_config` gives one that runs none. Of what that one does when
    it is merged (:class:`~lesion_d2.config.LesionConfig`), Detectron2's node does nothing: an old
    name of a key is an error that tells the new one, epochs go before iterations wherever they are
    set, and one value of MODEL.PIXEL_MEAN stands for every slice after
    :func:`broadcast_pixel_values` alone.

    Args:
        cfg: the node that :func:`detectron2.config.get_cfg` returned; changed in place.
    """
    _add_input_config(cfg)
    _add_backbone_config(cfg)
    _add_one_stage_config(cfg)
    _add_slice_images_config(cfg)
    _add_rcnn_config(cfg)
    _add_mean_teacher_config(cfg)
    _add_training_config(cfg)
    _add_mining_config(cfg)
    _add_ensemble_config(cfg)
    _add_volume_config(cfg)
    add_volumetric_config(cfg)
    for old, new in OLD_KEYS.items():
        if not cfg.key_is_renamed(old):
            cfg.register_renamed_key(old, new)


def _add_input_config(cfg: CN) -> None:
    cfg.INPUT.CT = CN()
    # C, the slices of one image: odd, the key slice in the middle. MODEL.PIXEL_MEAN and PIXEL_STD
    # have C values, or one for all slices.
    cfg.INPUT.CT.NUM_SLICES = 3
    # Distance between the slices of one image, in mm; 0 for neighbors in the series, whatever their
    # distance.
    cfg.INPUT.CT.SLICE_INTERVAL = 2.0
    # Hounsfield units that become 0 and 255 (the window of Zlocha et al., section 3.1).
    cfg.INPUT.CT.HU_WINDOW = (-1024.0, 1050.0)
    # The longer image side, in pixels; 0 leaves the size as it is.
    cfg.INPUT.CT.IMAGE_SIZE = 512
    # Pixel size in mm to resample to; 0 resizes to IMAGE_SIZE instead.
    cfg.INPUT.CT.PIXEL_SPACING = 0.0
    # The longer image side at most, in pixels; 0 sets no limit.
    cfg.INPUT.CT.MAX_SIZE = 0
    # Crop slices to the body, without the black borders around it, before anything is resized.
    cfg.INPUT.CT.CROP_TO_BODY = False

    # Pixels of the slice by which annotated boxes surround their lesions (DeepLesion: 5). Boxes of
    # masks (DetUNet, calibration) and of inserted lesions have this margin, and findings measured
    # on boxes are smaller by it.
    cfg.INPUT.BOX_MARGIN = 5.0

    # Training masks from RECIST diameters, where a model learns masks and the data set has none:
    # "ellipse" (Tang et al., 2.1) or "grabcut" (Zlocha et al., 2.2).
    cfg.INPUT.PSEUDO_MASK = "ellipse"
    # Whether lesions without diameters get such masks too, from the ellipse inscribed in their box;
    # False refuses data sets with them.
    cfg.INPUT.PSEUDO_MASK_FROM_BOX = True
    # Files that lesion_d2.tools.prepare_masks wrote; lesions in none of them get their masks on the
    # fly.
    cfg.INPUT.PSEUDO_MASK_FILES = ()

    # Augmentation in training (defaults: Zlocha et al., section 3.1). 0 switches a part off.
    cfg.INPUT.AUG = CN()
    cfg.INPUT.AUG.HFLIP_PROB = 0.5
    cfg.INPUT.AUG.VFLIP_PROB = 0.5
    cfg.INPUT.AUG.MAX_ROTATION = 0.1  # radians, either way
    cfg.INPUT.AUG.MAX_SHEAR = 0.1  # radians, either way
    cfg.INPUT.AUG.MAX_SCALE = 0.1  # share of the size, either way
    cfg.INPUT.AUG.MAX_TRANSLATION = 0.1  # share of the image side, either way
    # Image size in training is drawn from this range, as a factor of the size above.
    cfg.INPUT.AUG.RESIZE_RANGE = (1.0, 1.0)

    # Synthetic lesions painted into training images (lesion_d2.data.inserted) where there is room,
    # beside those that are annotated. Images without any take part where
    # DATALOADER.FILTER_EMPTY_ANNOTATIONS is False. Boxes surround their diameters by
    # INPUT.BOX_MARGIN.
    cfg.INPUT.INSERTED_LESIONS = CN()
    cfg.INPUT.INSERTED_LESIONS.PROBABILITY = 0.0  # of an image; 0 switches them off
    # An image has one to so many.
    cfg.INPUT.INSERTED_LESIONS.MAX_LESIONS = 2
    # DeepLesion's coarse types to draw from, of 2, 3, 4, 5, 7 and 8; () for all of these.
    cfg.INPUT.INSERTED_LESIONS.TYPES = ()
    # The class of all of them, or those of the coarse types 1 to 8.
    cfg.INPUT.INSERTED_LESIONS.CATEGORIES = (0,)
    cfg.INPUT.INSERTED_LESIONS.MEDIAN_DIAMETER = 16.0  # mm
    cfg.INPUT.INSERTED_LESIONS.MOTTLE_HU = 5.0  # HU, how uneven they are inside

    # Patches that training cuts out of its images, for images larger than memory likes. Inference
    # sees whole images, or tiles (TEST.ENSEMBLE.TILE_SIZE).
    cfg.INPUT.PATCH = CN()
    # Height and width, in pixels of the model's input; (0, 0) for whole images. Smaller images are
    # padded with the low end of the HU window.
    cfg.INPUT.PATCH.SIZE = (0, 0)
    # Probability that the patch of an image with lesions shows one of them, whole where it fits,
    # anywhere in the patch; otherwise it is any patch.
    cfg.INPUT.PATCH.FOREGROUND_PROB = 0.5

    # Processes that load images, for each process that trains: -1 for one less than there are cores
    # for it, at least 1 and at most 16. With another number the same SEED draws other
    # augmentations.
    cfg.DATALOADER.NUM_WORKERS = -1

    # Ratio of images without a lesion to all images of an epoch, drawn from all of them in turn;
    # below 0: what the data sets have. DATALOADER.FILTER_EMPTY_ANNOTATIONS True, the default of
    # Detectron2, leaves them all out.
    cfg.DATALOADER.EMPTY_IMAGE_RATIO = -1.0
    # Draw images of every class of lesions equally often. Either way an epoch has as many images
    # with lesions as the data sets have.
    cfg.DATALOADER.CLASS_BALANCE = False

    # Leave out (and count) images whose files are missing, instead of stopping before training.
    cfg.DATASETS.ALLOW_MISSING = False
    # Read slices of data sets in DeepLesion's layout from Images_prepared, which
    # lesion_d2.tools.prepare_slices makes of their Images_png: the same pixels in less time. Slices
    # that were not prepared, or have changed since, are an error.
    cfg.DATASETS.PREPARED_SLICES = False
    # Simulated missing annotations: the share of the annotations of DATASETS.TRAIN that training
    # does not see, drawn at random by the seed.
    cfg.DATASETS.MISSING_ANNOTATION_RATIO = 0.0
    cfg.DATASETS.MISSING_ANNOTATION_SEED = 0
    # Data sets of volumes whose series training does not get to see: Bai et al.'s validation
    # volumes are of DeepLesion's training set (2023, section III-A). One that is itself in
    # DATASETS.TRAIN stays there.
    cfg.DATASETS.EXCLUDED_VOLUMES = ()


def _add_backbone_config(cfg: CN) -> None:
    # The memory layout of a model on a GPU: channels last is that of its units for mixed precision
    # (SOLVER.AMP.ENABLED). Models of slices always have it on a CPU.
    cfg.MODEL.CHANNELS_LAST = False

    cfg.MODEL.VGG = CN()
    cfg.MODEL.VGG.DEPTH = 19  # 16 or 19, as in torchvision
    cfg.MODEL.VGG.BATCH_NORM = False
    # Channels of the first stage; those of the others are in proportion, 8 times as many at most.
    cfg.MODEL.VGG.WIDTH = 64
    # Stages that end with a pooling. Without the fourth and the fifth, c3 to c5 have stride 8, and
    # c5 is relu5_3 (3DCE).
    cfg.MODEL.VGG.POOLED_STAGES = (1, 2, 3, 4, 5)

    cfg.MODEL.UNET_FPN = CN()
    # Channels of P1 and P0, the levels that only the segmentation uses.
    cfg.MODEL.UNET_FPN.DECODER_CHANNELS = (64, 32)
    # Their normalization, by the names of MODEL.FPN.NORM.
    cfg.MODEL.UNET_FPN.DECODER_NORM = ""
    # How P2 and P1 come to the double size there: "nearest", as the levels of an FPN, or "bilinear"
    # (Jaeger et al., in their code).
    cfg.MODEL.UNET_FPN.UPSAMPLING = "nearest"
    # Channels of C0, two 3x3 convolutions at full size from which a ResNet begins and P0 has its
    # skip connection (Jaeger et al., in their code); 0 for none: a ResNet then begins from the
    # image, and P0's skip connection is convolutions of its own.
    cfg.MODEL.UNET_FPN.C0_CHANNELS = 0
    # An attention gate on every skip connection (Zlocha et al., section 2.3).
    cfg.MODEL.UNET_FPN.ATTENTION = False


def _add_one_stage_config(cfg: CN) -> None:
    # Whether the best anchors of a lesion are positive below MODEL.RETINANET.IOU_THRESHOLDS too, as
    # in Detectron2; without, a lesion that no anchor reaches trains as background (keras-retinanet,
    # which Zlocha et al. build on). For a LesionRetinaNet or RetinaUNet.
    cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES = True
    # In place of IOU_THRESHOLDS, matching by the statistics of each lesion (ATSS): the positions of
    # a level whose anchors are candidates (Zhang et al., 2020: 9; nnDetection: 4); 0 switches it
    # off. CENTER_INSIDE as the former have it: positives' centers lie in their lesion's box.
    cfg.MODEL.RETINANET.ATSS_CANDIDATES = 0
    cfg.MODEL.RETINANET.ATSS_CENTER_INSIDE = False

    # The segmentation of RetinaUNet, of DetUNet, and of LesionRCNN with its SEG_LOSS_WEIGHT.
    # (SEM_SEG_HEAD is that of Detectron2's own models.)
    cfg.MODEL.SEG_HEAD = CN()
    # "ce_dice": pixel-wise cross entropy plus soft Dice (Jaeger et al., equation (1)); "focal":
    # focal loss on the pixel-wise cross entropy (Zlocha et al., section 2.3) with the next two, the
    # weight of lesion pixels (0.5: masks are not biased) and the exponent.
    cfg.MODEL.SEG_HEAD.LOSS_TYPE = "ce_dice"
    cfg.MODEL.SEG_HEAD.FOCAL_ALPHA = 0.5
    cfg.MODEL.SEG_HEAD.FOCAL_GAMMA = 2.0
    # What the segmentation learns: lesions against background (the authors' Retina U-Net), or every
    # class by itself (their U-Faster R-CNN+; DetU-Net cannot do without). With one class there is
    # no difference.
    cfg.MODEL.SEG_HEAD.CLASS_AGNOSTIC = False
    # Whether predictions of RetinaUNet and DetUNet carry masks; without, P1 and P0 are only
    # computed at inference where CALIBRATION needs them, and for DetUNet.
    cfg.MODEL.SEG_HEAD.PREDICT_MASKS = False

    cfg.MODEL.RETINA_UNET = CN()
    # Weight of the segmentation loss; 0 switches it off.
    cfg.MODEL.RETINA_UNET.SEG_LOSS_WEIGHT = 1.0
    # How much a detection's score depends on the agreement of its box with the mask there: from 0
    # (not at all) to 1 (Zlocha et al., section 2.2).
    cfg.MODEL.RETINA_UNET.CALIBRATION = 0.0
    # Classes exclude each other: a softmax over them and the background in place of a sigmoid each
    # (Jaeger et al., section 3.1).
    cfg.MODEL.RETINA_UNET.SOFTMAX = False
    # Stochastic hard example mining (Jaeger et al., section 4.2) in place of the focal loss: as
    # many negative anchors as positive ones, drawn from the hardest so many times their number; 0
    # switches it off.
    cfg.MODEL.RETINA_UNET.SHEM_POOL = 0
    # Positive anchors of an image that count at most with it, drawn at random; 0 for all.
    cfg.MODEL.RETINA_UNET.SHEM_POSITIVES = 0
    # Negatives of the batch for each of its positives with it, and plain means over all that was
    # drawn (nnDetection: 2); 0 for Jaeger et al.'s one of each image, and means by halves.
    cfg.MODEL.RETINA_UNET.SHEM_NEGATIVES = 0

    cfg.MODEL.DET_UNET = CN()
    # Connected components that become detections, the largest of an image (Jaeger et al., section
    # 4.1).
    cfg.MODEL.DET_UNET.MAX_COMPONENTS = 5


def _add_slice_images_config(cfg: CN) -> None:
    # 3 M slices as M images of three, through one backbone.
    cfg.MODEL.SLICE_IMAGES = CN()
    # For three channels, inside of MODEL.BACKBONE.NAME build_slice_images_backbone or
    # build_fused_fpn_backbone.
    cfg.MODEL.SLICE_IMAGES.BACKBONE = "build_vgg_backbone"
    # Three-slice images whose features an evaluation of volumes caches for the next key slices
    # (four times as many with mirrored views); 0 computes all anew. At 2 mm between slices every
    # image serves M of them and at 1 mm too, which takes 3 M and 6 M; at 5 mm they have hardly any
    # in common.
    cfg.MODEL.SLICE_IMAGES.FEATURE_CACHE_SIZE = 64

    # torchvision's DenseNets; the defaults are those of its 121.
    cfg.MODEL.DENSENET = CN()
    cfg.MODEL.DENSENET.DEPTH = 121  # 121, 169 or 201
    # Dense blocks, from the first one on: 3 is the truncated DenseNet of Bai et al., section III-B.
    cfg.MODEL.DENSENET.NUM_BLOCKS = 3
    # Channels of the stem, and those that every layer adds.
    cfg.MODEL.DENSENET.STEM_CHANNELS = 64
    cfg.MODEL.DENSENET.GROWTH_RATE = 32
    # Compute what the layers concatenate again in the backward pass, in place of keeping it: less
    # memory, more time.
    cfg.MODEL.DENSENET.MEMORY_EFFICIENT = False


def _add_rcnn_config(cfg: CN) -> None:
    # Detectron2's RPN that also knows annotations to ignore: those of a class below 0.
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LesionRPN"

    cfg.MODEL.LESION_RCNN = CN()
    # Weight of a segmentation loss (MODEL.SEG_HEAD.LOSS_TYPE) on the U-FPN of a two-stage
    # detector (U-Faster R-CNN+ of Jaeger et al., section 4.1); 0 switches it off.
    cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT = 0.0
    # Stochastic hard example mining (Jaeger et al., section 4.2) in the RPN and in the heads of
    # MODEL.ROI_HEADS.NAME LesionROIHeads: as many negatives as keep POSITIVE_FRACTION of either,
    # one at least, drawn from the hardest so many times their number; 0 switches it off.
    cfg.MODEL.LESION_RCNN.SHEM_POOL = 0

    # 3DCE on an R-FCN (Yan et al., MICCAI 2018), with the attention of Tao et al. (2019).
    cfg.MODEL.RFCN_3DCE = CN()
    # Weights of the M images of a position (section 2.1), and of the positions of an image (2.2),
    # with the temperatures of their softmax.
    cfg.MODEL.RFCN_3DCE.CONTEXTUAL_ATTENTION = False
    cfg.MODEL.RFCN_3DCE.CONTEXTUAL_TEMPERATURE = 2.0
    cfg.MODEL.RFCN_3DCE.SPATIAL_ATTENTION = False
    cfg.MODEL.RFCN_3DCE.SPATIAL_TEMPERATURE = 3.0
    # Score maps of an image for each of the POOLER_RESOLUTION^2 parts of a region.
    cfg.MODEL.RFCN_3DCE.NUM_SCORE_MAPS = 10

    cfg.MODEL.ULDOR = CN()
    # Detections of the last class, false positives, are dropped, or counted as lesions that rank
    # below all others (Tang et al., section 3.2: "HNEM + FP").
    cfg.MODEL.ULDOR.COUNT_FALSE_POSITIVES = False


def _add_mean_teacher_config(cfg: CN) -> None:
    # Training with missing annotations (Bai et al., 2023), with any of the meta-architectures: what
    # learns is the student; its moving average, the teacher, is what is evaluated and saved.
    cfg.MODEL.MEAN_TEACHER = CN()
    cfg.MODEL.MEAN_TEACHER.ENABLED = False
    # Share of the teacher that an iteration keeps.
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
    # Epochs in place of iterations: where one is set, it replaces the Detectron2 key beside it. A
    # file or command line with that key unsets the epochs of the config that it is merged over
    # (epochs.py).
    cfg.SOLVER.MAX_EPOCHS = 0.0  # SOLVER.MAX_ITER
    cfg.SOLVER.STEP_EPOCHS = ()  # SOLVER.STEPS
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0.0  # SOLVER.CHECKPOINT_PERIOD
    # Number of checkpoints of SOLVER.CHECKPOINT_PERIOD that a run keeps, the last ones, beside the
    # best ones and model_final.pth; 0 keeps all.
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 2
    # The format of checkpoints: "pth" (torch.save's), or "safetensors".
    cfg.SOLVER.CHECKPOINT_FORMAT = "pth"
    cfg.TEST.EVAL_EPOCHS = 0.0  # TEST.EVAL_PERIOD
    cfg.TEST.LOSS_EPOCHS = 0.0  # TEST.LOSS_PERIOD
    # "SGD" (Detectron2's own), "Adam" or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE may be "full_model_norm" beside Detectron2's "value" and
    # "norm", which limits each parameter's gradient alone: the norm of all of them together.

    # On a GPU, one kernel for an optimizer's step (on a CPU its numbers would be others). A resumed
    # run goes on with what it began with.
    cfg.SOLVER.FUSED = True
    # Compile the backbone and the head (torch.compile) for the training: faster steps on a GPU,
    # after a minute or more at the first ones, and again for every new size of images. Losses
    # differ by rounding.
    cfg.SOLVER.COMPILE = False
    # Layers and the factor of their learning rate, such as [["box_head.fc1", 2.0]]. Biases have
    # SOLVER.BIAS_LR_FACTOR alone where that is not 1.
    cfg.SOLVER.LR_FACTORS = ()
    # Evaluations without a better metric after which the learning rate is multiplied by
    # PLATEAU_FACTOR; 0 switches it off.
    cfg.SOLVER.PLATEAU_PATIENCE = 0
    cfg.SOLVER.PLATEAU_FACTOR = 0.1
    # Evaluations without a better metric after which training stops; 0 switches it off.
    cfg.SOLVER.EARLY_STOP_PATIENCE = 0
    # The metric of both and of model_best.pth: "" for TEST.BEST_METRIC, or "validation_loss", the
    # lower the better.
    cfg.SOLVER.PATIENCE_METRIC = ""
    # Iterations between two computations of the loss on DATASETS.TEST; 0 switches it off.
    cfg.TEST.LOSS_PERIOD = 0
    # Images that an evaluation looks at together, and tiles of a volume; those of one size, so that
    # results differ by rounding alone. More than 1 is for a GPU.
    cfg.TEST.IMS_PER_BATCH = 1
    # The metric that picks the best checkpoint, as "task/metric" of the validation results.
    cfg.TEST.BEST_METRIC = "bbox/AP50"
    # Number of best checkpoints to keep in OUTPUT_DIR/best, for TEST.ENSEMBLE.CHECKPOINTS, by the
    # metric that selects model_best.pth; 0 keeps none.
    cfg.TEST.NUM_BEST_CHECKPOINTS = 0
    # Resamplings over patients for the 95 % intervals of the FROC table; 0 leaves them out.
    cfg.TEST.NUM_BOOTSTRAP = 1000
    # Boxes are whole pixels for every FROC and AP: sides of x2 - x1 + 1, as in the published
    # evaluation of 3DCE and Lesion-Harvester. Small boxes then hit more easily.
    cfg.TEST.INCLUSIVE_BOXES = False
    # Write the detections' masks into coco_instances_results.json, for pictures, also where the
    # data set has no masks that they are scored by: some 20 ms an image. Where masks are neither
    # scored nor written, evaluations compute none.
    cfg.TEST.WRITE_MASKS = False


def _add_mining_config(cfg: CN) -> None:
    # Hard negatives (Tang et al., section 2.2): false positives on the training images become
    # instances of a class of their own.
    cfg.HARD_NEGATIVES = CN()
    cfg.HARD_NEGATIVES.PERIOD = 0  # iterations between two minings; 0 switches them off
    cfg.HARD_NEGATIVES.EPOCHS = 0.0  # replaces HARD_NEGATIVES.PERIOD where it is set
    cfg.HARD_NEGATIVES.START_ITER = 0  # no mining before so many iterations
    cfg.HARD_NEGATIVES.START_EPOCHS = 0.0  # replaces HARD_NEGATIVES.START_ITER where it is set
    # The data sets of DATASETS.TRAIN to mine on, such as those with every lesion annotated; () for
    # all of them.
    cfg.HARD_NEGATIVES.DATASETS = ()
    cfg.HARD_NEGATIVES.MAX_PER_IMAGE = 3
    # A detection is positive, a hit, above this mask IoU with a pseudo-mask; of a model without
    # masks, above this IoU of its box with one of a lesion.
    cfg.HARD_NEGATIVES.POSITIVE_IOU_THRESH = 0.3
    # Where an image has no positive detection, those with a score above this are false positives.
    cfg.HARD_NEGATIVES.MIN_SCORE = 0.7


def _add_ensemble_config(cfg: CN) -> None:
    # Test-time ensembles (Jaeger et al., sections 3.2 and 4.2), with --eval-only and in prediction;
    # evaluations during the training are of the plain model.
    cfg.TEST.ENSEMBLE = CN()
    cfg.TEST.ENSEMBLE.ENABLED = False
    # Four views: the image, mirrored along x, along y, and along both. Eight of a volume.
    cfg.TEST.ENSEMBLE.MIRRORS = True
    # Files of weights, or folders of TEST.NUM_BEST_CHECKPOINTS, in place of MODEL.WEIGHTS; () for
    # that alone.
    cfg.TEST.ENSEMBLE.CHECKPOINTS = ()
    # Side of the tiles that larger images are cut into, in pixels of the model's input; 0 for none.
    # Of volumes it is TEST.VOLUME_TILE_SIZE.
    cfg.TEST.ENSEMBLE.TILE_SIZE = 0
    # Share of its side by which a tile overlaps the next one, at least.
    cfg.TEST.ENSEMBLE.TILE_OVERLAP = 0.5
    # What joins the views' detections: "wbc" (weighted box clustering) or "nms".
    cfg.TEST.ENSEMBLE.CONSOLIDATION = "wbc"
    # IoU with the best box above which two detections are one, in either.
    cfg.TEST.ENSEMBLE.IOU_THRESH = 0.2
    # The same with tiles. One that sees no more than a part of a lesion finds a box that has little
    # IoU with the lesion's: by the authors' threshold it is no detection of its own.
    cfg.TEST.ENSEMBLE.TILE_IOU_THRESH = 1e-5


def _add_volume_config(cfg: CN) -> None:
    # What makes boxes of volumes from the boxes of their slices: "merge" (Jaeger et al., section
    # 4.2) or "track" (Bai et al., section II: a Kalman filter along z).
    cfg.TEST.LINKING = "merge"
    # IoU with the best box above which "merge" takes boxes for one lesion.
    cfg.TEST.MERGE_IOU_THRESH = 0.1
    cfg.TEST.TRACKING = CN()
    # IoU of a box with the predicted one from which on "track" takes them for one lesion.
    cfg.TEST.TRACKING.IOU_THRESH = 0.3
    # Slices in a row without a box that a lesion may have.
    cfg.TEST.TRACKING.MAX_GAP = 1
    # When a detection in 3-D hits a lesion: overlap@threshold, with "iou", "iobb" (intersection
    # over the detected box) and "p3d" (IoU of the box that was linked on the lesion's key slice, 0
    # without one, with the lesion's; Cai et al., 2020). The first one's results are those of
    # "volume".
    cfg.TEST.VOLUME_CRITERIA = ("iou@0.1",)
    # False positives per volume of the FROC's table.
    cfg.TEST.VOLUME_FROC_RATES = FROC_RATES
    # Average precision in 3-D: "coco" (101 recalls; a detection takes one lesion) or "all_points"
    # (area under the interpolated curve, every repeated hit an error; Cai et al., 2020).
    cfg.TEST.VOLUME_AP = "coco"


def broadcast_pixel_values(cfg: CN) -> dict[str, list[float]]:
    """Repeat one value of MODEL.PIXEL_MEAN, or of PIXEL_STD, for every slice of an image.

    Models of volumes have one channel, whatever INPUT.CT.NUM_SLICES is.

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
    """Whether a mean teacher looks for lesions in training."""
    options = cfg.MODEL.MEAN_TEACHER
    return options.ENABLED and options.PSEUDO_LABELS != "none"


def trains_on_masks(cfg: CN) -> bool:
    """Whether training needs the lesions' masks: for a mask head, a segmentation loss or both.

    MODEL.MASK_ON would give U-Faster R-CNN+ a mask head as well.
    """
    return cfg.MODEL.MASK_ON or cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT > 0
