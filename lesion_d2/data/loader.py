"""Loaders of slices for training, validation loss and test."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import cv2
import torch
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.utils import comm

from ..utils.errors import InputError
from ..utils.files import one_line
from ..utils.parallel import count_cores
from .catalog import load_run_dicts, load_train_dicts
from .chunks.loading import ChunkLoader
from .mapper import IMAGE_KEYS, LesionDatasetMapper
from .samplers import BalancedSampler, SkippingSampler, pools_of
from .slices.ct import hu_to_pixels
from .transfer import annotation_tensors, copy_to_gpu, move_annotations
from .transforms.augmentation import build_augmentations
from .worker_states import StatefulLoad, WorkerStates

_MAX_WORKERS = 16


def count_workers(num_workers: int) -> int:
    """Return the number of loader workers for one training or evaluating process.

    Args:
        num_workers: DATALOADER.NUM_WORKERS; below 0 for the number of cores minus one, at least 1
            and at most 16.

    Returns:
        At most the cores that this process may use; processes of a run on this machine have equal
        shares.
    """
    cores = max(1, count_cores() // comm.get_local_size())
    if num_workers < 0:
        return max(1, min(_MAX_WORKERS, cores - 1))
    return min(num_workers, cores)


class NamingReader:
    """Reads images; errors name the image, also across processes.

    Args:
        load: maps a dict of a data set to model input.
    """

    def __init__(self, load: Callable[[dict], dict]):
        self.load = load

    def __call__(self, image: dict) -> dict:
        """Return the result of ``load``.

        Raises:
            InputError: its files are missing or damaged.
        """
        try:
            return self.load(image)
        except (OSError, ValueError) as error:
            raise InputError(f"image {image['image_id']}: {one_line(error)}") from error


class DeviceLoader:
    """Moves the images of a loader's batches to a device, on the 0..255 scale.

    Stacks are transferred as int16 and windowed on the device. For a GPU, they and their
    annotations (``instances``) are copied from pinned memory on a side stream, one batch ahead, so
    that neither the loader nor the model waits for the copy.

    Args:
        loader: yields batches: lists of dicts with ``image`` int16 (C, H, W) in HU.
        device: device of the model.
        hu_window: the HU mapped to 0 and 255.
    """

    def __init__(self, loader: Iterable, device: str | torch.device, hu_window):
        self.loader = loader
        self.device = torch.device(device)
        self.hu_window = tuple(hu_window)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        if self.device.type != "cuda":
            yield from map(self._move, self.loader)
            return
        stream = torch.cuda.Stream(self.device)
        ahead = None
        for batch in self.loader:
            with torch.cuda.stream(stream):
                moved = self._move(batch)
                copied = stream.record_event()
            if ahead is not None:
                yield self._hand_over(*ahead)
            ahead = moved, copied
        if ahead is not None:
            yield self._hand_over(*ahead)

    def _move(self, batch: list[dict]) -> list[dict]:
        to_gpu = None
        if self.device.type == "cuda":
            to_gpu = partial(copy_to_gpu, device=self.device)
        for sample, key in _images(batch):
            image = sample[key] if to_gpu is None else to_gpu(sample[key])
            sample[key] = hu_to_pixels(image, self.hu_window)
        for sample in batch if to_gpu is not None else ():
            move_annotations(sample, to_gpu)
        return batch

    def _hand_over(self, batch: list[dict], copied: "torch.cuda.Event") -> list[dict]:
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_event(copied)
        # The memory was allocated on the side stream; it must live until the consumer is done.
        for sample, key in _images(batch):
            sample[key].record_stream(consumer)
        for sample in batch:
            for tensor in annotation_tensors(sample):
                tensor.record_stream(consumer)
        return batch


def _images(batch: list[dict]) -> Iterator[tuple[dict, str]]:
    return ((sample, key) for sample in batch for key in IMAGE_KEYS if key in sample)


class TrainLoader(DeviceLoader):
    """Endless, shuffled loader of training batches, which can restart at any iteration.

    Args:
        dataset: dicts as :func:`load_deeplesion` returns them.
        mapper: mapper for training; the loader sets its ``hard_negatives``.
        device: device of the model.
        total_batch_size: images per iteration over all processes.
        seed: random seed of the order and of the workers' augmentations; None for a random one.
        sampler: sampler of the order; by default all images are equally frequent.
        options: other options of ``build_detection_train_loader``.
    """

    def __init__(
        self,
        dataset: list[dict],
        mapper: LesionDatasetMapper,
        device: str | torch.device,
        *,
        total_batch_size: int,
        seed: int | None = None,
        sampler: SkippingSampler | None = None,
        **options,
    ):
        self.dataset = DatasetFromList(dataset, copy=False)
        self.mapper = mapper
        self.sampler = sampler or SkippingSampler(len(dataset), seed=seed)
        self.total_batch_size = total_batch_size
        self.seed = seed
        self.options = options
        self._workers: WorkerStates | None = None
        self._iteration = 0
        super().__init__(self._build(), device, mapper.hu_window)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in super().__iter__():
            if self._workers is not None:
                self._workers.take(batch)
            yield batch

    @property
    def order_seed(self) -> int:
        """Random seed of the order of images; a new value takes effect at the next restart."""
        return self.sampler._seed

    @order_seed.setter
    def order_seed(self, seed: int) -> None:
        """Continue in the order of another run."""
        self.sampler._seed = seed

    def restart(
        self, iteration: int, hard_negatives: Mapping[str, list[dict]] | None = None
    ) -> None:
        """Let the next iterator start at the batch of an iteration, with new annotations.

        The order of images continues, so that none is repeated or skipped, except for a few with
        aspect-ratio grouping, which buffers images. Existing iterators must be discarded: their
        workers have the old annotations.

        Args:
            iteration: iteration, from 0.
            hard_negatives: replace the mapper's; None to keep them.
        """
        if hard_negatives is not None:
            self.mapper.hard_negatives = hard_negatives
        self.sampler.num_skipped = iteration * (self.total_batch_size // comm.get_world_size())
        self._iteration = iteration
        self.loader = self._build()

    def state_dict(self) -> dict:
        """The random states of the workers' augmentations after the consumed batches."""
        return {} if self._workers is None else {"workers": self._workers.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """After a restart, let the next iterator continue the augmentations of another run.

        This requires the same number of workers and no aspect-ratio grouping; otherwise
        augmentations restart.
        """
        self.loader = self._build(state.get("workers"))

    def _build(self, workers: dict | None = None) -> Iterable:
        # Always a new loader: aspect-ratio grouping would keep old images in its buffer.
        seed = self.seed
        if seed is None:  # drawn here, as torch would use its global generator
            seed = secrets.randbits(31)
        else:  # different for each process and restart
            seed += comm.get_rank() + self._iteration * comm.get_world_size()
        load, number = NamingReader(self.mapper.load), self.options.get("num_workers", 0)
        self._workers = None
        if number > 0 and not self.options.get("aspect_ratio_grouping"):
            self._workers = WorkerStates(number, seed)
            load = StatefulLoad(load, workers and self._workers.load_state_dict(workers))
        return build_detection_train_loader(
            self.dataset,
            mapper=load,
            sampler=self.sampler,
            total_batch_size=self.total_batch_size,
            seed=seed,
            **self.options,
        )


def build_lesion_train_loader(cfg, *, mapper: LesionDatasetMapper | None = None) -> TrainLoader:
    """Build the endless, shuffled training loader of DATASETS.TRAIN.

    DATALOADER.EMPTY_IMAGE_RATIO and CLASS_BALANCE determine the frequency of images, see
    :func:`~lesion_d2.data.samplers.make_pools`. With SEED >= 0 and the same number of workers,
    batches are reproducible (without workers, augmentations use NumPy's global state, which
    ``default_setup`` seeds).

    Args:
        cfg: config.
        mapper: a mapper for training, for example with other augmentations; by default that of the
            config.
    """
    dataset = load_train_dicts(cfg)
    prepare_workers()
    seed = cfg.SEED if cfg.SEED >= 0 else None
    pools = pools_of(dataset, cfg)
    return TrainLoader(
        dataset,
        LesionDatasetMapper(cfg, True) if mapper is None else mapper,
        cfg.MODEL.DEVICE,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        sampler=None if pools is None else BalancedSampler(*pools, seed=seed),
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=count_workers(cfg.DATALOADER.NUM_WORKERS),
    )


def build_lesion_test_loader(
    cfg,
    dataset_name: str,
    *,
    with_masks: bool = False,
    filter_empty: bool = False,
    batch_size: int = 1,
    kind: str = "TEST",
) -> DeviceLoader:
    """Build the loader of all images of a data set, distributed over the processes.

    Slices of volumes are read once, by a :class:`ChunkLoader`.

    Args:
        cfg: config.
        dataset_name: name in Detectron2's catalog.
        with_masks: add ``lesion_masks`` to samples, on the CPU: the pseudo-masks of the image's
            annotations by INPUT.PSEUDO_MASK, see :class:`LesionDatasetMapper`.
        filter_empty: skip images without annotations.
        batch_size: images per batch, which may have different sizes.
        kind: "TRAIN" or "TEST"; determines what is left out or hidden.
    """
    dataset = load_run_dicts(cfg, [dataset_name], kind, filter_empty=filter_empty)
    mapper = LesionDatasetMapper(cfg, False, with_masks=with_masks)
    if with_masks or not any("volume" in image for image in dataset):
        return _build_one_pass(cfg, dataset, mapper, batch_size)
    prepare_workers()
    loader = ChunkLoader(
        dataset,
        mapper,
        batch_size=batch_size,
        num_workers=count_workers(cfg.DATALOADER.NUM_WORKERS),
        named=NamingReader,
    )
    return DeviceLoader(loader, cfg.MODEL.DEVICE, cfg.INPUT.CT.HU_WINDOW)


def build_lesion_loss_loader(cfg) -> DeviceLoader:
    """Build the loader of the validation loss: all images of DATASETS.TEST with annotations.

    Images are preprocessed as at inference, without augmentation; batches have the size as in
    training. Images without lesions are included. Images are distributed over the processes.
    """
    dataset = load_run_dicts(cfg, cfg.DATASETS.TEST, "TEST")
    mapper = LesionDatasetMapper(
        cfg,
        True,
        augmentations=build_augmentations(cfg, False),
        weak_augmentations=None,
        inserter=None,
    )
    batch_size = max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size())
    return _build_one_pass(cfg, dataset, mapper, batch_size)


def _build_one_pass(
    cfg, dataset: list[dict], mapper: LesionDatasetMapper, batch_size: int
) -> DeviceLoader:
    prepare_workers()
    loader = build_detection_test_loader(
        dataset,
        mapper=NamingReader(mapper.load),
        batch_size=batch_size,
        num_workers=count_workers(cfg.DATALOADER.NUM_WORKERS),
    )
    return DeviceLoader(loader, cfg.MODEL.DEVICE, cfg.INPUT.CT.HU_WINDOW)


def prepare_workers() -> None:
    """Let loaders fork from this process."""
    # A forked worker inherits OpenCV's thread pool without its threads, and would wait for them
    # forever. As workers run in parallel anyway, this process disables the pool.
    cv2.setNumThreads(0)
