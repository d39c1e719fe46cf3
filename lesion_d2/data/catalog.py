"""Registered data sets by their names: Detectron2's catalog, with errors for its users."""

from difflib import get_close_matches

from detectron2.data import DatasetCatalog, MetadataCatalog

from .dataset_options import set_allow_missing

_MAX_NAMES = 5


def suggest_names(name: str, kind: str = "lesion") -> str:
    """Names of data sets of lesions, those like a misspelled one where there are such.

    Otherwise data sets of volumes come first, as their files are there.

    ``kind`` is what their ``evaluator_type`` begins with.
    """
    metadata = {n: MetadataCatalog.get(n) for n in DatasetCatalog.list()}
    known = [n for n, one in metadata.items() if one.get("evaluator_type", "").startswith(kind)]
    known.sort(key=lambda n: metadata[n].get("volume_set") is None)
    return ", ".join(get_close_matches(name, known, _MAX_NAMES) or known[:_MAX_NAMES])


def load_records(dataset: str, *, allow_missing: bool = False) -> list[dict]:
    """The dicts of a registered data set.

    Args:
        dataset: its name in ``DatasetCatalog``.
        allow_missing: leave out images whose file is missing.

    Raises:
        ValueError: the data set is not registered, or has no images.
    """
    if dataset not in DatasetCatalog.list():
        raise ValueError(
            f"data set {dataset!r} is not registered, expected a name such as "
            f"{suggest_names(dataset)}"
        )
    if allow_missing:
        set_allow_missing(dataset, True)
    records = DatasetCatalog.get(dataset)
    if not records:
        raise ValueError(f"data set {dataset!r} has no images")
    return records
