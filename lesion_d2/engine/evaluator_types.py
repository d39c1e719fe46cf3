"""The evaluation of a data set, selected by ``evaluator_type`` in its metadata."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config.volumetric import is_volumetric


def evaluator_types(cfg: CfgNode) -> tuple[str, ...]:
    """Return the supported values of ``evaluator_type``; only "lesion_volume" for 3-D models."""
    return ("lesion_volume",) if is_volumetric(cfg) else ("lesion", "lesion_volume")


def evaluator_type_of(cfg: CfgNode, dataset: str) -> str:
    """Return the ``evaluator_type`` of a data set.

    Args:
        cfg: config.
        dataset: its name in Detectron2's catalog.

    Raises:
        ValueError: it is not one of :func:`evaluator_types`, for example Detectron2's "coco".
    """
    found, known = MetadataCatalog.get(dataset).get("evaluator_type"), evaluator_types(cfg)
    if found not in known:
        raise ValueError(
            f"{dataset}: found evaluator_type {found!r} in its metadata, expected "
            f"{' or '.join(map(repr, known))}{_hint(dataset) if len(known) > 1 else ''}"
        )
    return found


def _hint(dataset: str) -> str:
    return (
        ": register a file of COCO's format with lesion_d2.data.coco.register_ct_coco; for other "
        f"dicts call MetadataCatalog.get({dataset!r}).set(evaluator_type='lesion')"
    )
