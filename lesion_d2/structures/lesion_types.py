"""DeepLesion's types of lesions."""

#: Names of DeepLesion's coarse lesion types 1 to 8.
COARSE_TYPES = (
    "bone",
    "abdomen",
    "mediastinum",
    "liver",
    "lung",
    "kidney",
    "soft tissue",
    "pelvis",
)
