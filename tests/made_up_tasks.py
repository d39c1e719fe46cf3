"""Small task folders in the layouts of nnDetection, nnU-Net and the Decathlon.

Lesions are told in the patient, in mm, and drawn voxel by voxel at the places that nibabel gives:
what importers make of them can be compared with these places, whatever the axes of a file are.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import apply_affine
from pycocotools import mask as coco_mask
from scipy.spatial import KDTree

SPACING = (0.8, 0.7, 2.5)
SHAPE = (44, 48, 14)
#: Two balls that share a plane, and one beside them: label -> center in LPS mm, radius.
BALLS = {1: ((6.0, 2.0, -3.0), 6.0), 2: ((14.0, 2.0, -3.0), 6.0), 3: ((8.0, -9.0, 2.0), 4.0)}
_BORDER = 10.0  # x of the plane
#: Codes of a file's axes and degrees of its grid's turn.
ORIENTATIONS = [("LPS", 0), ("RAS", 0), ("SAR", 0), ("PIL", 6)]


def affine_of(codes: str = "LPS", angle: float = 0.0, shape=SHAPE) -> np.ndarray:
    """A matrix to RAS of an array of anisotropic voxels whose axes lead to where ``codes`` say.

    Args:
        codes: such as ``"SAR"``: the first axis leads to Superior, and so on.
        angle: degrees that the grid is turned around the patient's long axis, and half of that
            around the one from right to left.
        shape: of the array, whose middle lies at the same place always.
    """
    matrix = np.zeros((3, 3))
    for axis, (direction, sign) in enumerate(nibabel.orientations.axcodes2ornt(tuple(codes))):
        matrix[int(direction), axis] = sign * SPACING[int(direction)]
    a, b = np.deg2rad(angle), np.deg2rad(angle / 2)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ matrix
    affine[:3, 3] = (-10, -2, -3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def shape_of(codes: str) -> tuple[int, int, int]:
    """Of an array that holds the body whatever its axes are."""
    ornt = nibabel.orientations.axcodes2ornt(tuple(codes))
    return tuple(SHAPE[int(direction)] for direction, _ in ornt)


def draw(affine: np.ndarray, shape: tuple, labels: Iterable[int]) -> tuple:
    """HU and label map, int16 and uint8, of a body with some of :data:`BALLS`."""
    at = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)) * (-1, -1, 1)
    hu = np.where(np.linalg.norm(at - (10, 2, -3), axis=-1) < 16, 20, -1000).astype(np.int16)
    drawn = np.zeros(shape, np.uint8)
    for label in labels:
        center, radius = BALLS[label]
        is_inside = np.linalg.norm(at - center, axis=-1) <= radius
        if label != 3:
            is_inside &= (at[..., 0] < _BORDER) == (label == 1)
        drawn[is_inside] = label
        hu[is_inside] = 90
    return hu, drawn


def save(file: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write NIfTI with nibabel."""
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), file)
    return file


def save_json(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def label_places(file: Path, values: Iterable[int]) -> np.ndarray:
    """Centers of a label's voxels, (N, 3) LPS mm, by nibabel alone."""
    image = nibabel.load(file)
    found = np.argwhere(np.isin(np.asarray(image.dataobj), list(values)))
    return apply_affine(image.affine, found) * (-1, -1, 1)


def hu_at(file: Path, points: np.ndarray) -> np.ndarray:
    """HU of the voxels at places in LPS mm, by nibabel alone."""
    image = nibabel.load(file)
    indices = apply_affine(np.linalg.inv(image.affine), points * (-1, -1, 1))
    return np.asarray(image.dataobj)[tuple(np.rint(indices).astype(int).T)]


def lesion_voxels(volume, lesion) -> np.ndarray:
    """x, y, z of the pixels of a lesion's masks, (N, 3)."""
    points = []
    for number, counts in lesion.masks.items():
        mask = coco_mask.decode({"size": list(volume.shape[1:]), "counts": counts})
        points += [(x, y, number) for y, x in np.argwhere(mask)]
    return np.array(points)


def same_places(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two sets of points are one, within 0.001 mm."""
    if len(found) != len(expected):
        return False
    there, back = KDTree(found).query(expected)[0], KDTree(expected).query(found)[0]
    return max(there.max(), back.max()) < 1e-3


def write_nndetection(
    root: Path, cases: Mapping[str, Mapping[int, int]], *, split="Tr", orientations=ORIENTATIONS
) -> Path:
    """A task folder of nnDetection: case -> its instances (of :data:`BALLS`) and their classes."""
    folder = root / "raw_splitted"
    for number, (case, instances) in enumerate(cases.items()):
        codes, angle = orientations[number % len(orientations)]
        shape = shape_of(codes)
        affine = affine_of(codes, angle, shape)
        hu, labels = draw(affine, shape, instances)
        save(folder / f"images{split}" / f"{case}_0000.nii.gz", hu, affine)
        save(folder / f"labels{split}" / f"{case}.nii.gz", labels, affine)
        by_instance = {str(k): v for k, v in instances.items()}
        save_json(folder / f"labels{split}" / f"{case}.json", {"instances": by_instance})
    dataset = {
        "task": "Task100_Made",
        "dim": 3,
        "labels": {"0": "cyst", "1": "tumour"},
        "modalities": {"0": "CT"},
    }
    save_json(root / "dataset.json", dataset)
    return root


def write_nnunet(
    root: Path,
    cases: Mapping[str, Iterable[int]],
    *,
    generation: int = 2,
    split: str = "Tr",
    orientations=ORIENTATIONS,
) -> Path:
    """A data set of nnU-Net: case -> its balls; the first two are the label 1, the third one 2.

    Args:
        root: the folder of ``dataset.json``.
        cases: names and :data:`BALLS`.
        generation: 1 or 2 of nnU-Net; 0 of the Decathlon, whose images have no number.
        split: "Tr" or "Ts".
        orientations: in turn.
    """
    for number, (case, balls) in enumerate(cases.items()):
        codes, angle = orientations[number % len(orientations)]
        shape = shape_of(codes)
        affine = affine_of(codes, angle, shape)
        hu, labels = draw(affine, shape, balls)
        labels = np.array([0, 1, 1, 2], np.uint8)[labels]
        image = case if generation == 0 else f"{case}_0000"
        save(root / f"images{split}" / f"{image}.nii.gz", hu, affine)
        save(root / f"labels{split}" / f"{case}.nii.gz", labels, affine)
    if generation == 2:
        dataset = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "tumour": 1, "liver": 2},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        }
    else:
        training = [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            for case in cases
        ]
        dataset = {
            "name": "Made",
            "modality": {"0": "CT"},
            "labels": {"0": "background", "1": "tumour", "2": "liver"},
            "numTraining": len(cases),
            "training": training,
            "test": [],
        }
    save_json(root / "dataset.json", dataset)
    return root
