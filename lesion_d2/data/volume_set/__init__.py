"""Data sets of volumes with lesions: on disk, in the catalog, as Detectron2's dicts."""
