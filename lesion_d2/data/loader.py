from collections.abc import Iterable, Iterator

import cv2
import torch
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from .ct import hu_to_pixels
from .mapper import LesionDatasetMapper


class DeviceLoader:
    """Gives a loader's batches with their images on a device, on the 0..255 scale.

    The stacks travel as int16 and are windowed where they arrive. To a GPU they are copied from
    pinned memory on a side stream, one batch ahead, so that neither the loader nor the model waits
    for the copy.

    Args:
        loader: batches are lists of dicts with ``image`` int16 (C, H, W) in HU.
        device: of the model.
        hu_window: low and high, in HU, that become 0 and 255.
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
        for sample in batch:
            image = sample["image"]
            if self.device.type == "cuda":
                image = image.pin_memory().to(self.device, non_blocking=True)
            sample["image"] = hu_to_pixels(image, self.hu_window)
        return batch

    def _hand_over(self, batch: list[dict], copied: "torch.cuda.Event") -> list[dict]:
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_event(copied)
        for sample in batch:
            # The memory was allocated on the side stream; it must live until the consumer is done.
            sample["image"].record_stream(consumer)
        return batch


def build_lesion_train_loader(cfg) -> DeviceLoader:
    """Build the endless, shuffled training loader of DATASETS.TRAIN.

    With SEED >= 0 and the same number of workers it gives the same batches every time (without
    workers, augmentations draw from NumPy's global state, which ``default_setup`` seeds).
    """
    dataset = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    seed = cfg.SEED if cfg.SEED >= 0 else None
    _prepare_workers()
    loader = build_detection_train_loader(
        dataset,
        mapper=LesionDatasetMapper(cfg, True).load,
        sampler=TrainingSampler(len(dataset), seed=seed),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=None if seed is None else seed + comm.get_rank(),
    )
    return DeviceLoader(loader, cfg.MODEL.DEVICE, cfg.INPUT.CT.HU_WINDOW)


def build_lesion_test_loader(cfg, dataset_name: str) -> DeviceLoader:
    """Build the loader that gives every image of one data set once, split over the processes."""
    _prepare_workers()
    loader = build_detection_test_loader(
        cfg, dataset_name, mapper=LesionDatasetMapper(cfg, False).load
    )
    return DeviceLoader(loader, cfg.MODEL.DEVICE, cfg.INPUT.CT.HU_WINDOW)


def _prepare_workers() -> None:
    # A forked worker inherits OpenCV's pool of threads without its threads, and would wait for
    # them for ever. Workers are parallel among themselves, so this process gives the pool up.
    cv2.setNumThreads(0)
