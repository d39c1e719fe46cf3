"""Label maps lie where their scan lies, as nibabel and SimpleITK see it."""

from dataclasses import replace

from lesion_d2.findings import encode_mask, write_label_map
from lesion_d2.findings.label_map import label_volume
from lesion_d2.scans import read_scan

import nibabel
import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK")
CENTER, AXES = np.array([5.0, -9.0, 20.0]), np.array([8.0, 11.0, 7.0])  # LPS, mm
OBLIQUE = nibabel.eulerangles.euler2mat(0.1, -0.15, 0.2)


def bright_ellipsoid(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """HU of an array with an affine matrix to LPS."""
    index = np.stack(np.indices(shape), axis=-1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    return np.where((((places - CENTER) / AXES) ** 2).sum(-1) <= 1, 60, -1000).astype(np.int16)


def write_volume(folder, ending: str, axes: list[int], flips: list[int]):
    """A volume whose axes are exchanged and flipped, with its array in x, y, z."""
    spacing = np.array([1.1, 0.9, 2.0])[axes]
    shape = tuple(np.array([34, 40, 16])[axes])
    direction = OBLIQUE[:, axes] * flips
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = CENTER + 1.5 - affine[:3, :3] @ (np.array(shape) / 2)
    array = bright_ellipsoid(affine, shape)
    file = folder / f"scan{ending}"
    if ending.startswith(".nii"):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-1, -1, 1, 1]) @ affine), file)
    else:
        image = sitk.GetImageFromArray(array.T)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection(direction.ravel().tolist())
        sitk.WriteImage(image, str(file))
    return file, array


def find_bright(findings, scan):
    """The findings with the masks of what is bright in a scan."""
    bright = scan.volume > 0
    (finding,) = findings.findings
    (entry, _) = finding.slices
    slices = tuple(
        replace(entry, slice_index=int(z), mask=encode_mask(bright[z]))
        for z in np.flatnonzero(bright.any(axis=(1, 2)))
    )
    finding = replace(finding, slices=slices, key_slice=slices[0].slice_index)
    return replace(findings, shape=scan.volume.shape, findings=(finding,))


@pytest.mark.parametrize(
    "ending, axes, flips",
    [
        (".nii.gz", [0, 1, 2], [-1, -1, 1]),
        (".nii", [2, 0, 1], [1, -1, -1]),
        (".mha", [1, 0, 2], [1, 1, 1]),
        (".nrrd", [0, 2, 1], [-1, 1, -1]),
    ],
)
def test_the_map_lies_on_the_scan(tmp_path, made_up_findings, ending, axes, flips):
    file, array = write_volume(tmp_path, ending, axes, flips)
    scan = read_scan(file)
    out = tmp_path / "label_map.nii.gz"
    write_label_map(out, scan, find_bright(made_up_findings, scan))
    labels = nibabel.load(out)
    assert labels.get_data_dtype() == np.uint16
    assert np.array_equal(np.asarray(labels.dataobj), array > 0)  # in the file's own axes
    if ending.startswith(".nii"):
        np.testing.assert_allclose(labels.affine, nibabel.load(file).affine, atol=1e-5)
    seen, source = sitk.ReadImage(str(out)), sitk.ReadImage(str(file))
    assert seen.GetSize() == source.GetSize()
    for corner in ((0, 0, 0), tuple(n - 1 for n in source.GetSize())):
        np.testing.assert_allclose(
            seen.TransformIndexToPhysicalPoint(corner),
            source.TransformIndexToPhysicalPoint(corner),
            atol=1e-3,
        )
    assert np.array_equal(sitk.GetArrayFromImage(seen), sitk.GetArrayFromImage(source) > 0)


def test_a_scan_without_a_grid_lends_its_own(tmp_path, made_up_findings):
    file, _ = write_volume(tmp_path, ".nii.gz", [2, 0, 1], [1, -1, -1])
    scan = read_scan(file)
    write_label_map(tmp_path / "a.nii", scan, find_bright(made_up_findings, scan))
    scan = replace(scan, grid=None)
    write_label_map(tmp_path / "b.nii", scan, find_bright(made_up_findings, scan))
    places = []
    for name in ("a.nii", "b.nii"):
        image = nibabel.load(tmp_path / name)
        found = np.argwhere(np.asarray(image.dataobj))
        points = nibabel.affines.apply_affine(image.affine, found)
        places.append(points[np.lexsort(points.round(2).T)])
    np.testing.assert_allclose(*places, atol=1e-3)
    assert (((places[0] * (-1, -1, 1) - CENTER) / AXES) ** 2).sum(axis=1).max() <= 1.001


def test_boxes_are_filled_and_the_better_finding_stands(made_up_findings):
    (finding,) = made_up_findings.findings
    slices = tuple(replace(entry, mask=None) for entry in finding.slices)
    better = replace(finding, slices=slices[:1], measured_on="box")
    worse = replace(
        finding,
        number=2,
        score=0.4,
        slices=(replace(slices[0], box=(15.0, 4.0, 25.0, 8.0)),),
        measured_on="box",
    )
    volume = label_volume(replace(made_up_findings, findings=(better, worse)))
    assert volume.dtype == np.uint16 and volume.shape == (5, 20, 30)
    expected = np.zeros((20, 30))
    expected[4:9, 15:26] = 2
    expected[4:9, 10:20] = 1  # of which 9.5 to 19.5 holds the centers 10 to 19
    assert np.array_equal(volume[2], expected) and volume.sum() == expected.sum()


def test_what_does_not_fit_is_refused(tmp_path, made_up_findings):
    file, _ = write_volume(tmp_path, ".nii.gz", [0, 1, 2], [-1, -1, 1])
    scan = read_scan(file)
    with pytest.raises(ValueError, match=r"label\.mha: found another ending"):
        write_label_map(tmp_path / "label.mha", scan, made_up_findings)
    with pytest.raises(ValueError, match=r"found findings in \(5, 20, 30\) voxels"):
        write_label_map(tmp_path / "label.nii", scan, made_up_findings)
    (finding,) = made_up_findings.findings
    with pytest.raises(ValueError, match="found finding number 70000"):
        label_volume(replace(made_up_findings, findings=(replace(finding, number=70000),)))
