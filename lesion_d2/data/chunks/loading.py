"""Batches of images in data set order, from chunks that loader processes read."""

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
    """Iterates over the images of a data set once, in order, as returned by a mapper's ``load``.

    The data set is distributed over the evaluating processes, then split into chunks of neighboring
    key slices of a volume, which the workers of each process read. If the distance between channels
    is an integer number of slices, every slice is read once; otherwise slices at the end of a chunk
    are read again for the next one. Channels are resized and sent once, and combined to images
    here. A volume in a NIfTI file is decompressed by one worker, into a file that all workers map.

    Memory use is the channels of one image and two chunks per worker; the temporary folder contains
    the NIfTI volumes in use. A killed run leaves its temporary folder behind.

    Args:
        dataset: one or more dicts; images without a volume are read one by one.
        mapper: a mapper for inference, without masks.
        batch_size: images per batch.
        num_workers: number of worker processes; 0 to load in this process.
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
        if chunks:  # otherwise there are more processes than images
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
                if shared is not None and left[folder] == 0:  # no worker needs it any more
                    release(shared, folder)
                if chunk.volume != volume:
                    volume, known = chunk.volume, {}
                yield from _put_together(chunk, known)


def _only(chunks: list[ReadChunk]) -> ReadChunk:
    """Return the only chunk of a batch."""
    return chunks[0]


def _shared_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="lesion_d2_", ignore_cleanup_errors=True)


def _put_together(chunk: ReadChunk, known: dict[Channel, np.ndarray]) -> Iterator[dict]:
    """The samples of a chunk with their images; updates ``known``, the channels for reuse."""
    if chunk.volume is None:
        yield from chunk.samples
        return
    if chunk.planes is not None:
        known.update(zip(chunk.channels, chunk.planes.numpy(), strict=True))
    for sample, plan in zip(chunk.samples, chunk.plans, strict=True):
        # NumPy copies in this thread only; torch's other threads would cost time by waiting.
        image = np.stack([known[channel] for channel in plan])
        yield {**sample, "image": torch.from_numpy(image)}
        oldest = min(lower for lower, _, _ in plan)
        for channel in [channel for channel in known if channel[0] < oldest]:
            del known[channel]
