"""Samplers of the order of training images."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from detectron2.data.samplers import TrainingSampler

from ..structures.ignore_regions import lesions_of


class SkippingSampler(TrainingSampler):
    """Detectron2's TrainingSampler, which can start at any position.

    Attributes:
        num_skipped: number of this process's indices that the next iterator skips.
    """

    num_skipped = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(super().__iter__(), self.num_skipped, None)


class BalancedSampler(SkippingSampler):
    """Endless sampler that takes a fixed number of images per epoch from each pool.

    Each pool is iterated in random order, reshuffled after each pass. An epoch is shuffled as a
    whole, and its images are distributed over the processes, as in
    :class:`~detectron2.data.samplers.TrainingSampler`.

    Args:
        pools: indices of images; an image may be in several pools.
        counts: number of images per epoch from each pool.
        seed: random seed; None for a random one that all processes share.
    """

    def __init__(
        self, pools: Sequence[Sequence[int]], counts: Sequence[int], *, seed: int | None = None
    ):
        super().__init__(sum(counts), seed=seed)
        self._pools = [torch.as_tensor(pool) for pool in pools]
        self._counts = list(counts)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        streams = [_endless(pool, generator) for pool in self._pools]
        while True:
            parts = zip(streams, self._counts, strict=True)
            epoch = [i for stream, count in parts for i in itertools.islice(stream, count)]
            for position in torch.randperm(len(epoch), generator=generator).tolist():
                yield epoch[position]


def _endless(pool: torch.Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from pool[torch.randperm(len(pool), generator=generator)].tolist()


def make_pools(
    images: Sequence[Mapping], *, empty_share: float = -1.0, class_balance: bool = False
) -> tuple[list[list[int]], list[int]] | None:
    """Make the pools of a :class:`BalancedSampler`.

    An epoch has as many images with lesions as the data set. Without ``class_balance`` these are
    all of them, once each; with it, every class with lesions is sampled equally often (differing by
    at most one), and an image with lesions of several classes is in the pool of each. The published
    code of Jaeger et al. balances batches like this; the paper does not mention it. A share
    ``empty_share`` of the epoch are images without lesions, at least one if it is above 0.

    Args:
        images: Detectron2 dicts, in the order of the loader.
        empty_share: in [0, 1); below 0 for the share in the data set.
        class_balance: whether to sample classes equally often.

    Returns:
        The pools and their counts; None if there is nothing to balance.

    Raises:
        ValueError: no image has a lesion, or all have and ``empty_share`` is above 0.
    """
    if empty_share < 0 and not class_balance:
        return None
    classes = [{a["category_id"] for a in lesions_of(image["annotations"])} for image in images]
    filled = [i for i, found in enumerate(classes) if found]
    empty = [i for i, found in enumerate(classes) if not found]
    if not filled:
        raise ValueError(f"found no lesion in {len(images)} images, expected at least one")
    pools, counts = [filled], [len(filled)]
    if class_balance:
        names = sorted(set().union(*classes))
        pools = [[i for i in filled if name in classes[i]] for name in names]
        ends = [len(filled) * k // len(names) for k in range(len(names) + 1)]
        counts = [end - start for start, end in itertools.pairwise(ends)]
    num_empty = len(empty)
    if empty_share >= 0:
        num_empty = round(len(filled) * empty_share / (1 - empty_share))
        num_empty = max(num_empty, int(empty_share > 0))
    if num_empty and not empty:
        raise ValueError(
            f"found a lesion in all {len(images)} images, expected images without lesions for "
            f"a share of {empty_share:g}"
        )
    if num_empty:
        pools, counts = [*pools, empty], [*counts, num_empty]
    return pools, counts


def count_epoch(images: Sequence[Mapping], cfg) -> int:
    """Return the number of images per epoch for a config and the images of the training loader.

    Raises:
        ValueError: see :func:`make_pools`.
    """
    made = pools_of(images, cfg)
    return len(images) if made is None else sum(made[1])


def pools_of(images: Sequence[Mapping], cfg) -> tuple[list[list[int]], list[int]] | None:
    """Call :func:`make_pools` with DATALOADER.EMPTY_IMAGE_RATIO and DATALOADER.CLASS_BALANCE.

    Raises:
        ValueError: see :func:`make_pools`; the message names DATASETS.TRAIN.
    """
    options = cfg.DATALOADER
    try:
        return make_pools(
            images, empty_share=options.EMPTY_IMAGE_RATIO, class_balance=options.CLASS_BALANCE
        )
    except ValueError as error:
        raise ValueError(
            f"DATASETS.TRAIN: {error} (DATALOADER.EMPTY_IMAGE_RATIO is "
            f"{options.EMPTY_IMAGE_RATIO:g}, CLASS_BALANCE {options.CLASS_BALANCE})"
        ) from error
