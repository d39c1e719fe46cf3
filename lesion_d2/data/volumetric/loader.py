"""Loaders of patches for training, and of whole volumes for inference."""

import logging
from collections.abc import Callable, Iterable, Sequence

from detectron2.data import MetadataCatalog, build_detection_test_loader

from ...structures.ignore_regions import lesions_of
from ..catalog import load_records, load_run_dicts, suggest_names
from ..loader import TrainLoader, count_workers, prepare_workers
from ..samplers import BalancedSampler, pools_of
from .mapper import VolumePatchMapper
from .reading import ResampledVolume, model_shape
from .records import volume_records

logger = logging.getLogger(__name__)

# Keys of a record that are passed on at inference.
_TOLD = ("image_id", "volume", "patient", "first_slice", "shape", "spacing")


def load_volume_records(
    names: str | Sequence[str],
    *,
    filter_empty: bool = False,
    read: Callable[[str], list[dict]] = load_records,
) -> list[dict]:
    """Load the records of registered data sets.

    Args:
        names: one or more names of data sets with all slices of their volumes.
        filter_empty: leave out runs of slices without a lesion.
        read: gives the dicts of a data set from its name; by default all of them.

    Raises:
        ValueError: a data set has no volumes; see also
            :func:`~lesion_d2.data.volumetric.records.volume_records`.
    """
    records = []
    for name in [names] if isinstance(names, str) else names:
        check_volumes(name)
        records += volume_records(read(name), name)
    if filter_empty:
        records = [record for record in records if lesions_of(record["annotations"])]
    num_slices = sum(record["shape"][0] for record in records)
    num_lesions = sum(len(lesions_of(record["annotations"])) for record in records)
    logger.info(
        f"{num_lesions} lesions in {len(records)} volumes (runs of slices) of {num_slices} slices"
    )
    return records


def check_volumes(name: str) -> None:
    """Check that a registered data set contains volumes.

    Raises:
        ValueError: it contains single slices.
    """
    if MetadataCatalog.get(name).get("evaluator_type") != "lesion_volume":
        raise ValueError(
            f"data set {name!r}: found single slices, expected all slices of volumes, as in "
            f"{suggest_names(name, 'lesion_volume')}"
        )


def build_volume_train_loader(cfg) -> TrainLoader:
    """Build the endless, shuffled loader of patches of DATASETS.TRAIN.

    By default each volume contributes one patch per epoch; DATALOADER.EMPTY_IMAGE_RATIO and
    CLASS_BALANCE change this as for images. With SEED >= 0 and the same number of workers, batches
    are reproducible, and the loader can restart at any iteration, see :class:`TrainLoader`.

    Raises:
        ValueError: there is no volume; see also :func:`load_volume_records` and
            :class:`VolumePatchMapper`.
    """
    records = load_volume_records(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        read=lambda name: load_run_dicts(cfg, [name], "TRAIN"),
    )
    if not records:
        raise ValueError(
            f"DATASETS.TRAIN: found no volume in {tuple(cfg.DATASETS.TRAIN)}, expected one or more "
            f"(DATALOADER.FILTER_EMPTY_ANNOTATIONS is {cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS})"
        )
    for record in records:
        model_shape(record, cfg.INPUT.VOLUME.SPACING)  # check spacings before training
    prepare_workers()
    seed = cfg.SEED if cfg.SEED >= 0 else None
    pools = pools_of(records, cfg)
    return TrainLoader(
        records,
        VolumePatchMapper(cfg),
        cfg.MODEL.DEVICE,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        sampler=None if pools is None else BalancedSampler(*pools, seed=seed),
        aspect_ratio_grouping=False,
        num_workers=count_workers(cfg.DATALOADER.NUM_WORKERS),
    )


class VolumeReader:
    """Maps a record to the input of 3-D inference.

    Args:
        spacing: x, y, z in mm of the model's voxels; 0 keeps the spacing of an axis.
        hu_window: low and high, in HU.
    """

    def __init__(self, spacing: Sequence[float], hu_window: tuple[float, float]):
        self.spacing, self.hu_window = tuple(spacing), tuple(hu_window)

    def __call__(self, record: dict) -> dict:
        """Return the record without annotations and files, and with a ``reader`` of its voxels."""
        told = {key: record[key] for key in _TOLD}
        return {**told, "reader": ResampledVolume(record, self.spacing, self.hu_window)}


def build_volume_test_loader(cfg, dataset_name: str) -> Iterable[list[dict]]:
    """Build the loader of all runs of slices of a data set, distributed over the processes.

    Args:
        cfg: the run's config.
        dataset_name: name in Detectron2's catalog of a data set with all slices of its volumes.

    Returns:
        Lists of one dict: ``image_id``, ``volume``, ``patient``, ``first_slice``, ``shape`` and
        ``spacing`` as in :func:`~lesion_d2.data.volumetric.records.volume_records`, and ``reader``,
        a :class:`ResampledVolume`: voxels are read on demand.

    Raises:
        ValueError: see :func:`load_volume_records`.
    """
    records = load_volume_records(
        dataset_name, read=lambda name: load_run_dicts(cfg, [name], "TEST")
    )
    reader = VolumeReader(cfg.INPUT.VOLUME.SPACING, cfg.INPUT.CT.HU_WINDOW)
    return build_detection_test_loader(records, mapper=reader, num_workers=0)
