"""Loading of data sets for a check, with the errors of their loaders as faults."""

import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.catalog import suggest_names
from ..data.dataset_options import DatasetOptions, read_dataset
from ..data.dict_rules import annotation_problems, image_problems
from ..data.formats.problems import ProblemsError, short_repr
from ..data.roots import resolve_root
from ..data.toys.on_demand import register_if_toy
from ..data.volume_set.catalog import register_volume_set
from ..data.volume_set.form import FILE_NAME
from ..scans.names import safe_name
from .faults import FaultLog

SPLITS = ("train", "val", "test")
_FOLD = re.compile(r"_fold\d+(?=_|$)")
_SPLIT = re.compile(r"^(.*)_(train|val|test)(?=_|$)")  # the last one in a name


@dataclass(frozen=True)
class LoadedSet:
    """A registered data set, loaded.

    Args:
        name: name in Detectron2's catalogs.
        classes: names of its classes; empty if the catalog has none.
        images: Detectron2 dicts; invalid ones are left out.
        first_number: number of its first image in the check.
    """

    name: str
    classes: tuple[str, ...]
    images: list[dict] = field(repr=False)
    first_number: int = 0

    @property
    def split(self) -> str:
        """The split in the name: "train", "val" or "test"; else the name."""
        match = _SPLIT.match(self.name)
        return match[2] if match else self.name

    @property
    def family(self) -> str:
        """The name without the split; within a family, patient names are unique."""
        return _SPLIT.sub(r"\1", self.name)

    @property
    def all_folds(self) -> str:
        """The family without the fold, the same for all folds of a data set."""
        return _FOLD.sub("", self.family)

    def numbered(self) -> Iterator[tuple[int, dict]]:
        """Numbers and dicts of the images."""
        return enumerate(self.images, start=self.first_number)


def expand_names(names: Iterable[str]) -> list[str]:
    """Expand names without a split to all splits: ``phantom`` to ``phantom_train``, ...

    For a volume set, or a fold of it, these are the data sets with every slice.

    Raises:
        OSError: a volume set cannot be read.
        ValueError: likewise, or there is no such data set or split.
    """
    expanded: list[str] = []
    for name in names:
        for toy in (name, *(f"{name}_{split}" for split in SPLITS)):
            register_if_toy(toy)
        known = set(DatasetCatalog.list())
        if name not in known and not splits_of(name, known):
            _register(name)
            known = set(DatasetCatalog.list())
        found = splits_of(f"{name}_volumes", known) if _is_volume_set(name, known) else []
        found = found or splits_of(name, known)
        if not found and _is_volume_set(name, known) and f"{name}_volumes" in known:
            found = [f"{name}_volumes"]
        if not found and name not in known:
            raise ValueError(
                f"found data set {name!r}, which is not registered, expected a name such as "
                f"{suggest_names(name)}, or one without its split"
            )
        expanded += found or [name]
    return list(dict.fromkeys(expanded))


def splits_of(name: str, known: Container[str]) -> list[str]:
    """Names of the splits of a data set among the known names."""
    return [f"{name}_{split}" for split in SPLITS if f"{name}_{split}" in known]


def _is_volume_set(name: str, known: Container[str]) -> bool:
    """Whether a name is that of a volume set or a fold of it, without split."""
    registered = [one for one in (name, *splits_of(name, known)) if one in known]
    return any(MetadataCatalog.get(one).get("volume_set") for one in registered)


def _register(name: str) -> None:
    """Register a data set of volumes that is new, or tell what is wrong with it."""
    root = os.path.join(resolve_root("$DETECTRON2_DATASETS"), name)
    if safe_name(name) == name and os.path.isfile(os.path.join(root, FILE_NAME)):
        register_volume_set(root)


def load_sets(names: Sequence[str], log: FaultLog) -> list[LoadedSet]:
    """Load data sets; errors of loaders and invalid dicts become faults.

    Images with missing files are left out if the layout allows it, so that the rest is checked.

    Raises:
        OSError: one cannot be read at all.
        ValueError: likewise.
    """
    loaded: list[LoadedSet] = []
    for name in names:
        first = loaded[-1].first_number + len(loaded[-1].images) if loaded else 0
        classes = tuple(MetadataCatalog.get(name).get("thing_classes", ()))
        dicts = [d for d in _load(name, log) if _is_good(d, name, log)]
        counts = Counter(repr(image["image_id"]) for image in dicts)
        for image_id, count in counts.items():
            if count > 1:
                text = f"found its image_id {count} times, expected one of its own"
                log.add("bad_record", f"{name}, image {image_id}: {text}")
        loaded.append(LoadedSet(name, classes, dicts, first))
    return loaded


def _load(name: str, log: FaultLog) -> list[dict]:
    try:
        return DatasetCatalog.get(name)
    except ProblemsError as error:
        refused = error
    can_miss = MetadataCatalog.get(name).get("can_miss_images", False)
    dicts = _load_rest(name) if can_miss else None
    kind = "refused" if dicts is None else "missing_file"
    for problem in refused.problems:
        log.add(kind, f"{name}: {refused.source}, {problem}")
    return dicts or []


def _load_rest(name: str) -> list[dict] | None:
    """The images with existing files; None if there are other errors than missing files."""
    try:
        return read_dataset(name, DatasetOptions(allow_missing=True))
    except ProblemsError:
        return None
    except ValueError:  # no image remains
        return []


def _is_good(image: object, name: str, log: FaultLog) -> bool:
    """Whether a dict is valid; its problems are added to the log."""
    if not isinstance(image, Mapping):
        log.add("bad_record", f"{name}: found {short_repr(image)}, expected a dict")
        return False
    problems = list(_problems_of(image))
    for problem in problems:
        place = short_repr(image.get("image_id", image.get("file_name")))
        log.add("bad_record", f"{name}, image {place}: {problem}")
    return not problems


def _problems_of(image: Mapping) -> Iterator[str]:
    yield from image_problems(image)
    file_name = image.get("file_name", "")
    if not isinstance(file_name, str | os.PathLike):
        yield f"found file_name {short_repr(file_name)}, expected a path"
    annotations = image.get("annotations", ())
    if not isinstance(annotations, list | tuple) or not all(
        isinstance(one, Mapping) for one in annotations
    ):
        yield f"found annotations {short_repr(annotations)}, expected a list of dicts"
        return
    for number, annotation in enumerate(annotations, 1):
        for problem in annotation_problems(annotation):
            yield f"annotation {number}: {problem}"


def volume_key(image: Mapping) -> tuple:
    """Key of an image's volume or series, or of the image itself if it has neither."""
    if "volume" in image:
        return ("volume", image["volume"])
    if "series" in image:
        return ("series", image.get("patient"), image.get("study"), image["series"])
    return ("image", image["image_id"])


def where(loaded: LoadedSet, image: Mapping, annotation: Mapping | None = None) -> str:
    """Name of an image, or of an annotation by its row or lesion, for messages."""
    text = f"{loaded.name}, image {image['image_id']}"
    if annotation is None:
        return text
    for key, word in (("row", "row"), ("lesion_id", "lesion")):
        if key in annotation:
            return f"{text}, {word} {annotation[key]}"
    number = next(i for i, one in enumerate(image["annotations"], 1) if one is annotation)
    return f"{text}, annotation {number}"
