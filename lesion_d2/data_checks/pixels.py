"""The pass over all pixels of data sets, in a pool of processes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from ..scans.nifti import is_nifti
from ..utils.parallel import map_with_progress
from .faults import FaultLog
from .loading import SPLITS, LoadedSet, volume_key, where
from .rules.annotations import pixel_regions
from .rules.volumes import (
    VolumeSums,
    check_image_sizes,
    check_upside_down,
    check_volume,
    spacing_of,
)
from .slices import SliceFacts, SliceTask, look_at_slices

_CHUNK = 32  # slices per task of a process


class PixelPass:
    """Reads all slices and logs their faults; keeps only a digest of each.

    Args:
        sets: the data sets.
        log: where faults go.
    """

    def __init__(self, sets: Sequence[LoadedSet], log: FaultLog):
        self.sets, self.log = sets, log
        #: Name of the data set -> volume -> sums.
        self.volumes: dict[str, dict[tuple, VolumeSums]] = {one.name: {} for one in sets}
        self._by_file: dict[str, list[int]] = {}
        self._digests: dict[bytes, int] = {}
        self._same: dict[bytes, list[int]] = {}

    def run(self, workers: int | None) -> None:
        """Read all files, and log faults of files, volumes and duplicate images."""
        for loaded in self.sets:
            for number, image in loaded.numbered():
                self._by_file.setdefault(image["file_name"], []).append(number)
                self._volume(loaded, image, number)
        chunks = list(self._chunks())
        total = len(self._by_file)
        bar = {"total": total, "desc": "slices", "unit": "slice", "disable": None}
        with map_with_progress(look_at_slices, chunks, workers, size=len, **bar) as results:
            for facts in results:
                for one in facts:
                    self._take(one)
        for loaded in self.sets:
            volumes = list(self.volumes[loaded.name].values())
            for volume in volumes:
                check_volume(volume, self.log)
            check_image_sizes(volumes, self.log)
            check_upside_down(volumes, self.log)
        self._note_same_images()

    def image(self, number: int) -> tuple[LoadedSet, dict]:
        """The data set and dict of an image number."""
        loaded = next(one for one in reversed(self.sets) if one.first_number <= number)
        return loaded, loaded.images[number - loaded.first_number]

    def _volume(self, loaded: LoadedSet, image: Mapping, number: int) -> VolumeSums:
        volumes, key = self.volumes[loaded.name], volume_key(image)
        if key not in volumes:
            name = " ".join(map(str, key[:1])) + " " + "_".join(map(str, key[1:]))
            volumes[key] = VolumeSums(f"{loaded.name}, {name}", number)
        volumes[key].spacings.add(spacing_of(image))
        return volumes[key]

    def _chunks(self) -> Iterator[list[SliceTask]]:
        """Chunks of slices; slices of a file that is decoded as a whole stay together."""
        files = sorted(self._by_file, key=lambda file: self._by_file[file][0])
        for whole_file, group in groupby(files, _whole_file):
            tasks = [self._task(file) for file in group]
            size = len(tasks) if whole_file else _CHUNK
            for start in range(0, len(tasks), size):
                yield tasks[start : start + size]

    def _task(self, file: str) -> SliceTask:
        """The task of a file, with the annotations of all its images."""
        numbers = self._by_file[file]
        _, first = self.image(numbers[0])
        regions = [region for n in numbers for region in pixel_regions(n, self.image(n)[1])]
        return SliceTask(numbers[0], file, (first["height"], first["width"]), tuple(regions))

    def _take(self, facts: SliceFacts) -> None:
        loaded, image = self.image(facts.number)
        if facts.fault is not None:
            kind, text = facts.fault
            self.log.add(kind, f"{where(loaded, image)}: {text}", facts.number)
            return
        for other in self._by_file[image["file_name"]]:
            of, its = self.image(other)
            self._volume(of, its, other).add(facts.shape, facts.pixels)
            self._check_size(of, its, facts, other)
        for number, index, kind, text in facts.regions:
            of, its = self.image(number)
            self.log.add(kind, f"{where(of, its, its['annotations'][index])}: {text}", number)
        if facts.pixels.low == facts.pixels.high:
            kind = "blank_lesion_image" if image["annotations"] else "blank_image"
            text = f"found {facts.pixels.low} HU in all pixels of {image['file_name']}"
            self.log.add(kind, f"{where(loaded, image)}: {text}", facts.number)
            return  # blank images are not duplicates
        for number in self._by_file[image["file_name"]]:
            self._digest(facts.digest, number)

    def _check_size(
        self, loaded: LoadedSet, image: Mapping, facts: SliceFacts, number: int
    ) -> None:
        expected = (image["height"], image["width"])
        if facts.shape != expected:
            text = (
                f"found {facts.shape[1]} x {facts.shape[0]} pixels in {image['file_name']}, "
                f"expected {expected[1]} x {expected[0]}"
            )
            self.log.add("image_size", f"{where(loaded, image)}: {text}", number)

    def _digest(self, digest: bytes, number: int) -> None:
        if digest not in self._digests:
            self._digests[digest] = number
        else:
            self._same.setdefault(digest, [self._digests[digest]]).append(number)

    def _note_same_images(self) -> None:
        """Log duplicate images, each with the first image that it equals.

        A duplicate in another split takes precedence, as it is worse than one in the same split.
        """
        for numbers in self._same.values():
            firsts: dict[str, int] = {}  # first image per data set
            for number in sorted(numbers):
                loaded, _ = self.image(number)
                others = [
                    first
                    for first in firsts.values()
                    if _are_two_splits(self.image(first)[0], loaded)
                ]
                if firsts:
                    self._note_same(min(others or firsts.values()), number)
                firsts.setdefault(loaded.name, number)

    def _note_same(self, first: int, number: int) -> None:
        (loaded, image), (before, original) = self.image(number), self.image(first)
        are_two_splits = _are_two_splits(before, loaded)
        is_same_file = original["file_name"] == image["file_name"]
        if is_same_file and loaded.name != before.name and not are_two_splits:
            return  # two names of the same slices
        kind = "image_in_two_splits" if are_two_splits else "duplicate_image"
        text = (
            f"found the pixels of {where(before, original)} ({original['file_name']}), expected "
            "other ones"
        )
        self.log.add(kind, f"{where(loaded, image)}: {text}", number)


def _are_two_splits(one: LoadedSet, other: LoadedSet) -> bool:
    """Whether two data sets are different splits, such as train and test.

    Different folds of a data set are not compared, as they share images by design.
    """
    are_two_folds = one.all_folds == other.all_folds and one.family != other.family
    are_known = {one.split, other.split} <= set(SPLITS)
    return one.split != other.split and are_known and not are_two_folds


def _whole_file(file: str) -> str | None:
    """The file of a slice if reading a slice decodes the whole file, else None."""
    folder = os.path.dirname(file)
    return folder if is_nifti(folder) or folder.endswith("#stored") else None
