"""The faults that a check of a data set looks for, and what each means."""

from typing import NamedTuple

ERROR, WARNING = "error", "warning"


class Kind(NamedTuple):
    """A kind of fault: how bad it is, and what it means for a training."""

    severity: str
    meaning: str


#: All kinds by name, in the order of reports. An error spoils a training or an evaluation.
KINDS: dict[str, Kind] = {
    "refused": Kind(ERROR, "the loader refuses it: a training would not start"),
    "bad_record": Kind(ERROR, "an image's dict lacks what a training reads"),
    "missing_file": Kind(ERROR, "there is no such file"),
    "unreadable_file": Kind(ERROR, "the file cannot be decoded"),
    "image_size": Kind(ERROR, "the file has another size than its annotations say"),
    "volume_sizes": Kind(ERROR, "slices of one volume differ in size"),
    "blank_lesion_image": Kind(ERROR, "an image with a lesion has one value everywhere"),
    "gray_levels": Kind(ERROR, "gray levels, 0 to 255 or of hardly any range, are no HU"),
    "no_offset": Kind(ERROR, "stored values without their offset: air is 0 and water near 1024"),
    "no_tissue": Kind(ERROR, "all is air: an offset was subtracted twice, or nothing is shown"),
    "bad_spacing": Kind(ERROR, "the spacing is not three numbers of mm from 0.01 to 100"),
    "bad_box": Kind(ERROR, "a box without area, or not of four finite numbers in a known mode"),
    "box_outside": Kind(ERROR, "a box lies outside of its image"),
    "unknown_class": Kind(ERROR, "the category is none of the data set's classes"),
    "bad_mask": Kind(ERROR, "a mask is empty, of another size, or not in COCO's run lengths"),
    "mask_box": Kind(ERROR, "a mask and its box disagree"),
    "lesions_on_air": Kind(ERROR, "one lesion in ten or more lies on air: boxes are misplaced"),
    "image_in_two_splits": Kind(ERROR, "two splits have an image with the same pixels"),
    "patient_in_two_splits": Kind(ERROR, "two splits have images of the same patient"),
    "classes_differ": Kind(ERROR, "splits have other lists of classes"),
    "class_not_trained": Kind(ERROR, "the training split lacks a class that another split has"),
    "no_lesion": Kind(ERROR, "a split has no lesion"),
    "class_missing": Kind(WARNING, "a split lacks a class that another one has, or all lack it"),
    "lesion_on_air": Kind(WARNING, "there is only air where a lesion should be"),
    "box_overhang": Kind(WARNING, "a box reaches past its image's border"),
    "tiny_box": Kind(WARNING, "a box has a side below 2 pixels"),
    "repeated_lesion": Kind(WARNING, "the same lesion is annotated twice"),
    "odd_lesion_size": Kind(WARNING, "a lesion is far larger or smaller than all others"),
    "split_sizes": Kind(WARNING, "lesions of two splits differ threefold in median size"),
    "image_sizes": Kind(WARNING, "images differ fourfold in size"),
    "odd_spacing": Kind(WARNING, "pixels are not square, or no CT scanner has such a spacing"),
    "mixed_spacing": Kind(WARNING, "slices of one volume differ in spacing"),
    "upside_down": Kind(WARNING, "bones lie above the body's center: prone, or rows are flipped"),
    "odd_orientation": Kind(WARNING, "axes are not left, posterior and inferior"),
    "in_no_split": Kind(WARNING, "a patient is in none of the splits"),
    "no_air": Kind(WARNING, "nothing is below -300 HU: a crop within the body, or no HU"),
    "blank_image": Kind(WARNING, "an image without a lesion has one value everywhere"),
    "duplicate_image": Kind(WARNING, "images have the same pixels, and are not of two splits"),
}
