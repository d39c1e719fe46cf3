"""The kinds of malformed files."""

from ..case import Kind


def all_kinds() -> list[Kind]:
    """Every kind, in the order of the table."""
    from . import (
        annotations,
        checkpoints,
        coco,
        configs,
        csv_rows,
        dicom,
        masks,
        nifti,
        pickles,
        png,
        reports,
        volume_sets,
    )

    modules = (png, csv_rows, masks, reports, annotations, pickles, nifti, dicom, coco, volume_sets)
    return [*(m.KIND for m in (*modules, configs, checkpoints)), masks.VOLUMES]
