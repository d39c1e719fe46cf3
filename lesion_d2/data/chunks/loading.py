"""Batches of images in the order of a data set, from chunks that processes read."""

import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from detectron2.data import build_detection_test_loader
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import SequentialSampler

from ..mapper import LesionDatasetMapper
from ..shared_arrays import release
from ..slices.ct import Channel
from .reading import ChunkReader, ReadChunk, cut_into_chunks


class ChunkLoader:
    """Gives every image of a data set once, in order, as a mapper's ``load`` gives it.

    The data set is split over the processes that evaluate, and then into chunks of neighboring key
    slices of a volume, which the workers of each process read. Every slice is read once where
    channels are whole slices apart; where they are not, the slices at the end of a chunk are read
    for the next one, too. Channels are resized and sent once, and put together to images here.
    A volume in a NIfTI file is decompressed by one worker, into a file that all of them map.

    Memory holds the channels that an image has, and two chunks a worker; the disk for temporary
    files holds the NIfTI volumes that workers are at. A run that is killed leaves its temporary
    folder behind.

    Args:
        dataset: dicts, at least one; what is not of a volume is read image by image.
        mapper: for inference, without masks.
        batch_size: images a batch.
        num_workers: processes; 0 for none but this one.
        named: see :class:`ChunkReader`.
    """

    def __init__(
        self,
        dataset: Sequence[dict],
        mapper: LesionDatasetMapper,
        *,
        batch_size: int,
        num_workers: int,
        named: Callable[[Callable[[dict], object]], Callable[[dict], object]],
    ):
        own = [dataset[index] for index in InferenceSampler(len(dataset))]
        chunks = cut_into_chunks(own, mapper)
        self._reader = ChunkReader(mapper, named)
        self._num_batches = math.ceil(len(own) / batch_size)
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._folders = [chunk.folder for chunk in chunks]
        self._loader: Iterable[ReadChunk] = ()
        if chunks:  # else there are more processes than images
            self._loader = build_detection_test_loader(
                chunks,
                mapper=self._reader,
                sampler=SequentialSampler(chunks),
                num_workers=num_workers,
                collate_fn=_only,
            )

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[dict]]:
        images = self._images()
        while batch := list(itertools.islice(images, self._batch_size)):
            yield batch

    def _images(self) -> Iterator[dict]:
        volume, known, left = None, {}, Counter(self._folders)
        with _shared_folder() if self._num_workers else nullcontext() as shared:
            self._reader.folder = shared
            for folder, chunk in zip(self._folders, self._loader, strict=True):
                left[folder] -= 1
                if shared is not None and left[folder] == 0:  # no worker asks for it any more
                    release(shared, folder)
                if chunk.volume != volume:
                    volume, known = chunk.volume, {}
                yield from _put_together(chunk, known)


def _only(chunks: list[ReadChunk]) -> ReadChunk:
    """The batch of one."""
    return chunks[0]


def _shared_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="lesion_d2_", ignore_cleanup_errors=True)


def _put_together(chunk: ReadChunk, known: dict[Channel, np.ndarray]) -> Iterator[dict]:
    """The samples of a chunk with their images; ``known`` gets the channels that may come again."""
    if chunk.volume is None:
        yield from chunk.samples
        return
    if chunk.planes is not None:
        known.update(zip(chunk.channels, chunk.planes.numpy(), strict=True))
    for sample, plan in zip(chunk.samples, chunk.plans, strict=True):
        # NumPy copies in this thread alone: torch's others would wait for it, and take time.
        image = np.stack([known[channel] for channel in plan])
        yield {**sample, "image": torch.from_numpy(image)}
        oldest = min(lower for lower, _, _ in plan)
        for channel in [channel for channel in known if channel[0] < oldest]:
            del known[channel]
