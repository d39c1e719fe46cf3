from .box_clustering import batched_weighted_box_clustering, find_clusters, weighted_box_clustering
from .ensemble import Ensemble
from .slices import batched_merge_slices, merge_slices

__all__ = [
    "Ensemble",
    "batched_merge_slices",
    "batched_weighted_box_clustering",
    "find_clusters",
    "merge_slices",
    "weighted_box_clustering",
]
