import itertools

from lesion_d2.scans import Grid, Scan, SliceSource, Turn
from lesion_d2.scans.orientation import canonical_turn, turned_geometry

import nibabel
import numpy as np
import pytest

ALL_TURNS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def oblique_affine(axes=(0, 1, 2), signs=(1, 1, 1)) -> np.ndarray:
    """To LPS, of an array whose axes lead about to the patient's; rotated by some degrees."""
    c, s = np.cos(0.15), np.sin(0.15)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (rotation * [0.7, 0.8, 2.5])[:, list(axes)] * signs
    affine[:3, 3] = -170.0, -160.5, 33.25
    return affine


def scan_of(array: np.ndarray, affine: np.ndarray, **fields) -> Scan:
    turn = canonical_turn(affine)
    volume = turn.apply(array)
    spacing, origin, direction = turned_geometry(affine, array.shape, turn)
    sources = tuple(SliceSource("scan.nii", index) for index in range(len(volume)))
    grid = Grid(array.shape, affine, turn)
    return Scan("scan", volume, spacing, origin, direction, sources, "nifti", None, grid, **fields)


@pytest.mark.parametrize(("axes", "signs"), ALL_TURNS)
def test_every_orientation_becomes_inferior_posterior_left(axes, signs):
    affine = oblique_affine(axes, signs)
    array = np.random.default_rng(1).integers(-1000, 1000, (4, 5, 6), np.int16)
    scan = scan_of(array, affine)
    # x leads to Left and y to Posterior: both are positive in LPS; z to Inferior.
    np.testing.assert_array_equal(np.sign(np.diag(scan.direction)), [1, 1, -1])
    assert scan.spacing == pytest.approx((0.7, 0.8, 2.5))
    assert scan.voxel_volume == pytest.approx(0.7 * 0.8 * 2.5)
    # Each voxel is where the file's matrix says it is.
    indices = np.argwhere(np.ones_like(array))
    places = (affine @ np.c_[indices, np.ones(len(indices))].T).T[:, :3]
    voxels = scan.from_patient(places)
    np.testing.assert_allclose(voxels, np.rint(voxels), atol=1e-9)
    x, y, z = np.rint(voxels).astype(int).T
    np.testing.assert_array_equal(scan.volume[z, y, x], array[tuple(indices.T)])
    np.testing.assert_allclose(scan.to_patient(voxels), places, atol=1e-9)
    np.testing.assert_array_equal(scan.grid.restore(scan.volume), array)


def test_nibabel_agrees_on_the_axes_and_the_matrix():
    affine = oblique_affine((2, 0, 1), (1, -1, -1))
    array = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    scan = scan_of(array, affine)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    image = nibabel.Nifti1Image(array, scan.grid.ras_affine)
    target = nibabel.orientations.axcodes2ornt("LPI")
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), target)
    )
    np.testing.assert_array_equal(np.asarray(turned.dataobj).transpose(2, 1, 0), scan.volume)
    expected = lps @ turned.affine
    np.testing.assert_allclose(scan.direction * scan.spacing, expected[:3, :3], atol=1e-12)
    np.testing.assert_allclose(scan.origin, expected[:3, 3], atol=1e-12)


def test_a_fourth_axis_comes_back():
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    turn = canonical_turn(oblique_affine((1, 0, 2)))
    grid = Grid((3, 4, 5, 1), oblique_affine((1, 0, 2)), turn)
    np.testing.assert_array_equal(grid.restore(turn.apply(array)), array[..., None])


@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
@pytest.mark.parametrize("flips", itertools.product((False, True), repeat=2))
def test_masks_and_points_go_to_the_stored_frame(axes, flips):
    frame = np.arange(12).reshape(3, 4)
    turn = Turn(axes, flips)
    volume = turn.apply(frame)[None].astype(np.int16)
    source = SliceSource("1.dcm", None, "1.2")
    scan = Scan("s", volume, (1, 1, 1), np.zeros(3), np.eye(3), (source,), "dicom", slice_turn=turn)
    np.testing.assert_array_equal(scan.to_source_slice(volume[0]), frame)
    for y, x in np.ndindex(volume.shape[1:]):
        column, row = scan.to_source_points([[x, y]])[0].astype(int)
        assert frame[row, column] == volume[0, y, x]


@pytest.mark.parametrize("spoiled", [np.nan, 0.0])
def test_a_matrix_without_an_axis_is_refused(spoiled):
    affine = oblique_affine()
    affine[:3, 1] = spoiled
    with pytest.raises(ValueError, match=r"matrix that (is not finite|leaves out an axis)"):
        canonical_turn(affine)
