"""Box clustering, ensembles, and linking of slices to volumes."""

from .batches import OneSizeBatches
from .box_clustering import batched_weighted_box_clustering, find_clusters, weighted_box_clustering
from .ensemble import Ensemble
from .linking import LINKINGS, Linker, build_linker
from .slices import batched_merge_slices, merge_slices
from .tracking import batched_track_slices, track_slices
from .volume_ensemble import VolumeEnsemble

__all__ = [
    "LINKINGS",
    "Ensemble",
    "Linker",
    "OneSizeBatches",
    "VolumeEnsemble",
    "batched_merge_slices",
    "batched_track_slices",
    "batched_weighted_box_clustering",
    "build_linker",
    "find_clusters",
    "merge_slices",
    "track_slices",
    "weighted_box_clustering",
]
