"""LIDC-IDRI, in files of its layout; what pylidc 0.2.3 makes of them stands here as numbers.

Those came of its wheel in an environment of its own (NumPy 1.23, SQLAlchemy 1.4): the annotations
of the XML file that ``write_lidc`` writes were put in an empty database of pylidc's tables, and
``boolean_mask``, ``cluster_annotations`` and ``utils.consensus`` asked. A mask is told by its
voxels, the first and last slice, row and column, and the sums of its columns, rows and slices.
"""

import pickle
import tracemalloc

from lesion_d2.importers.lidc.listing import list_cases, list_lidc
from lesion_d2.importers.lidc.nodules import (
    annotation_mask,
    cluster_annotations,
    split_by_reader,
)
from lesion_d2.importers.lidc.xml import read_readings
from lesion_d2.importers.resampling import resample
from lesion_d2.importers.running import run_import
from lesion_d2.structures.rle import decode_mask
from lesion_d2.tools.import_data import get_parser

import numpy as np
import pytest
from round_trip import check_trains_and_evaluates

pydicom = pytest.importorskip("pydicom")

from lidc_files import (  # noqa: E402
    BALLS,
    ORIGIN,
    SHAPE,
    contours,
    reader_mask,
    readings_xml,
    write_lidc,
)
from made_up_scans import change  # noqa: E402

A1 = [285, (1, 5), (15, 25), (16, 26), (5985, 5700, 855)]
PYLIDC_MASKS = {
    "A0": [272, (1, 5), (15, 25), (15, 25), (5440, 5440, 816)],
    "A1": A1,
    "A2": A1,
    "A3": [285, (1, 5), (15, 25), (14, 24), (5415, 5700, 855)],
    "B1": [79, (2, 4), (17, 23), (27, 33), (2370, 1580, 237)],
    "B2": [79, (2, 4), (18, 24), (27, 33), (2370, 1659, 237)],
    "C3": [79, (1, 3), (7, 13), (47, 53), (3950, 790, 158)],
    "D0": [135, (3, 5), (32, 40), (46, 54), (6750, 4860, 540)],
    "D3": [135, (3, 5), (32, 40), (47, 55), (6885, 4860, 540)],
    "E0": [58, (2, 2), (35, 41), (9, 23), (885, 2204, 116)],
    "E1": [58, (2, 2), (35, 41), (9, 23), (885, 2204, 116)],
    "E2": [58, (2, 2), (36, 42), (9, 23), (885, 2262, 116)],
}
PYLIDC_CLUSTERS = {
    0: ["A0 A1 A2 A3 B1 B2", "C3", "D0 D3", "E0 E1 E2"],  # "Failed to reduce all groups"
    3: ["A0 A1 A2 A3", "B1 B2", "C3", "D0 D3", "E0 E1 E2"],
}
# Votes that are needed -> consensus of the annotations of a nodule, at that share of them.
PYLIDC_CONSENSUS = {
    ("A", 2): [328, (1, 5), (15, 25), (15, 26), (6724, 6560, 984)],
    ("A", 3): [242, (1, 5), (15, 25), (16, 25), (4961, 4840, 726)],
    ("B", 2): [62, (2, 4), (18, 23), (27, 33), (1860, 1271, 186)],
    ("C", 1): [79, (1, 3), (7, 13), (47, 53), (3950, 790, 158)],
    ("D", 2): [112, (3, 5), (32, 40), (47, 54), (5656, 4032, 448)],
    ("E", 2): [58, (2, 2), (35, 41), (9, 23), (885, 2204, 116)],
}
# Votes -> nodule: readers' votes that are needed, mean malignancy, class.
EXPECTED = {
    "authors": {"A": (2, 4.0, 1), "B": (2, 1.5, 0), "D": (2, 1.25, 0), "E": (2, 3.0, 1)},
    "paper": {
        "A": (3, 4.0, 1),
        "B": (2, 3.0, 1),
        "C": (1, 5.0, 1),
        "D": (2, 2.5, 1),
        "E": (2, 4.0, 1),
    },
}


def summary(mask: np.ndarray) -> list:
    z, y, x = np.nonzero(mask)
    ends = [(int(axis.min()), int(axis.max())) for axis in (z, y, x)]
    return [len(z), *ends, (int(x.sum()), int(y.sum()), int(z.sum()))]


def volume_mask(lesion, shape=SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for number, counts in lesion.masks.items():
        mask[number] = decode_mask({"size": shape[1:], "counts": counts})
    return mask


@pytest.fixture(scope="module")
def lidc(tmp_path_factory):
    root = tmp_path_factory.mktemp("lidc")
    write_lidc(root)
    return root


def xml_text(root) -> str:
    (file,) = root.rglob("*.xml")
    return file.read_text()


def annotations_of(xml, files):
    """Names such as ``A0``, masks (Z, H, W) and points x, y, slice of the annotations of a file."""
    heights = [pydicom.dcmread(file).ImagePositionPatient[2] for file in files]
    names, masks, points = [], [], []
    for annotation in read_readings(xml).annotations:
        placed = [(heights.index(contour.z), contour) for contour in annotation.contours]
        names.append(f"{annotation.nodule}{annotation.reader}")
        mask = np.zeros(SHAPE, bool)
        for number, part in annotation_mask(placed, SHAPE[1:]).items():
            mask[number] = part
        masks.append(mask)
        points.append(np.concatenate([np.insert(c.points, 2, z, axis=1) for z, c in placed]))
    return names, masks, points


def test_masks_are_what_was_outlined_and_pylidc_has(lidc):
    (xml,) = lidc.rglob("*.xml")
    names, masks, _ = annotations_of(xml, sorted(lidc.rglob("*.dcm")))
    assert sorted(names) == sorted(PYLIDC_MASKS)
    for name, mask in zip(names, masks, strict=True):
        assert (mask == reader_mask(name[0], int(name[1]))).all(), name
        assert summary(mask) == PYLIDC_MASKS[name], name


@pytest.mark.parametrize("gap", [0, 3])
def test_clusters_are_pylidcs_but_for_readers_that_stand_twice(tmp_path, gap):
    files, xml = write_lidc(tmp_path, gap=gap)
    names, masks, points = annotations_of(xml, files)
    thickness = float(pydicom.dcmread(files[0]).SliceThickness)
    groups = cluster_annotations(points, thickness)
    named = sorted(" ".join(sorted(names[index] for index in group)) for group in groups)
    assert named == PYLIDC_CLUSTERS[gap]

    readers = [int(name[1]) for name in names]
    by_slice = [dict(enumerate(mask)) for mask in masks]
    parts = [part for group in groups for part in split_by_reader(group, readers, by_slice)]
    named = sorted(" ".join(sorted(names[index] for index in part)) for part in parts)
    assert named == PYLIDC_CLUSTERS[3]


def test_outlines_of_many_points_take_little_memory():
    points = np.random.default_rng(0).integers(0, 500, (2, 4000, 3))
    tracemalloc.start()
    try:
        assert cluster_annotations(points, 20.0) == [[0, 1]]
        assert tracemalloc.get_traced_memory()[1] < 10e6  # all distances would be 128 MB
    finally:
        tracemalloc.stop()


def test_no_annotation_makes_no_cluster():
    assert cluster_annotations([], 2.5) == []


@pytest.mark.parametrize("votes", list(EXPECTED))
def test_lesions_are_the_readers_majority(lidc, votes):
    case = pickle.loads(pickle.dumps(list_lidc(lidc, votes=votes).cases[0]))
    imported = case.read()
    lesions = {}
    for lesion in imported.volume.lesions:
        mask = volume_mask(lesion)
        (nodule,) = {n for n in BALLS if any((mask & reader_mask(n, r)).any() for r in BALLS[n])}
        lesions[nodule] = lesion
        needed, malignancy, category = EXPECTED[votes][nodule]
        counts = sum(reader_mask(nodule, reader).astype(int) for reader in BALLS[nodule])
        assert (mask == (counts >= needed)).all()
        assert summary(mask) == PYLIDC_CONSENSUS[nodule, needed]
        assert lesion.attributes == {"readers": len(BALLS[nodule]), "malignancy": malignancy}
        assert lesion.category == category and not lesion.ignore
    assert lesions.keys() == EXPECTED[votes].keys()
    assert [lesion.id for lesion in imported.volume.lesions] == list(range(1, len(lesions) + 1))
    told = " ".join(imported.left_out)
    assert "1 marks of nodules below 3 mm and 1 of findings that are not nodules" in told
    assert ("nodule C, readers: 1: no voxel has a majority" in told) == (votes == "authors")


def test_lesions_lie_in_the_patient_where_the_files_say(tmp_path):
    """Rows and columns of the stored images run against the scan's, and slices are told by z."""
    direction = np.array([[-1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
    files, xml = write_lidc(tmp_path, direction=direction)
    xml.write_text(xml.read_text().replace("<imageSOP_UID>", "<imageSOP_UID>1."))
    imported = list_lidc(tmp_path, votes="paper").cases[0].read()
    lesion = max(imported.volume.lesions, key=lambda lesion: volume_mask(lesion).sum())
    header = pydicom.dcmread(files[0])
    origin, across = np.array(header.ImagePositionPatient, float), header.ImageOrientationPatient
    counts = sum(reader_mask("A", reader).astype(int) for reader in BALLS["A"])
    z, y, x = np.argwhere(counts >= 3).mean(axis=0)
    expected = (
        origin
        + x * header.PixelSpacing[1] * np.array(across[:3], float)
        + y * header.PixelSpacing[0] * np.array(across[3:], float)
        + z * 2.5 * direction[:, 2]
    )
    center = np.argwhere(volume_mask(lesion)).mean(axis=0)[::-1]
    assert np.abs(imported.volume.to_patient([center])[0] - expected).max() < 1e-3
    assert volume_mask(lesion).sum() == (counts >= 3).sum()
    point = np.argwhere(volume_mask(lesion))[0]
    world = imported.volume.to_patient([point[::-1]])[0]
    offset = world - origin
    column, row = offset @ across[:3] / 0.7, offset @ across[3:] / 0.8
    number = round(offset @ direction[:, 2] / 2.5)
    stored = pydicom.dcmread(files[number]).pixel_array[round(row), round(column)]
    assert stored == imported.voxels[tuple(point)]


@pytest.mark.parametrize("thickness", ["inf", "nan", "-5", "x"])
def test_a_thickness_that_is_none_is_the_distance_of_slices(tmp_path, thickness):
    for file in write_lidc(tmp_path)[0]:
        content = file.read_bytes()
        start = content.index(b"\x18\x00\x50\x00DS") + 8
        length = content[start - 2]
        value = thickness.encode().ljust(length)
        file.write_bytes(content[:start] + value + content[start + length :])
    assert len(list_lidc(tmp_path).cases[0].read().volume.lesions) == 4


def test_a_nodule_without_a_score_is_ignored(lidc, tmp_path):
    session = [("C", None, contours("C", 3))]
    text = readings_xml(sorted(lidc.rglob("*.dcm")), [session, session, [], []])
    (tmp_path / "001.xml").write_text(text)
    imported = list_lidc(lidc, tmp_path).cases[0].read()
    (lesion,) = imported.volume.lesions
    assert lesion.ignore and lesion.attributes == {"readers": 2}
    assert any("no reader gave a malignancy" in line for line in imported.left_out)


def test_resampled_lesions_stay_in_place(lidc):
    before = list_lidc(lidc).cases[0].read()
    after = resample(before, (0.5, 0.5, 1.25))
    assert after.volume.spacing == (0.5, 0.5, 1.25)
    assert after.voxels.shape == after.volume.shape == (14, 77, 90)
    for old, new in zip(before.volume.lesions, after.volume.lesions, strict=True):
        masks = volume_mask(old), volume_mask(new, after.volume.shape)
        centers = [
            imported.volume.to_patient([np.argwhere(mask).mean(axis=0)[::-1]])[0]
            for imported, mask in zip((before, after), masks, strict=True)
        ]
        assert np.abs(np.subtract(*centers) / (0.7, 0.8, 2.5)).max() < 0.5
        sizes = masks[0].sum() * 0.7 * 0.8 * 2.5, masks[1].sum() * 0.5 * 0.5 * 1.25
        assert sizes[0] == pytest.approx(sizes[1], rel=0.15)
        assert (old.category, old.attributes) == (new.category, new.attributes)


def test_lesions_of_resampled_slices_stay_in_place(tmp_path):
    """A slice is 0.9 mm off, so that slices are interpolated; D is on three slices beside it."""
    files, _ = write_lidc(tmp_path)

    def move(dataset, index):
        dataset.ImagePositionPatient[2] -= 0.9 if index == 0 else 0

    change(files, move)
    imported = list_lidc(tmp_path, votes="paper").cases[0].read()
    assert any("interpolated" in line or "spaced" in line for line in imported.left_out)
    counts = sum(reader_mask("D", reader).astype(int) for reader in BALLS["D"])
    z, y, x = np.argwhere(counts >= 2).mean(axis=0)
    expected = np.array([ORIGIN[0] + x * 0.7, ORIGIN[1] + y * 0.8, ORIGIN[2] - z * 2.5])
    centers = [
        imported.volume.to_patient([np.argwhere(volume_mask(lesion)).mean(axis=0)[::-1]])[0]
        for lesion in imported.volume.lesions
    ]
    nearest = min(np.abs((center - expected) / (0.7, 0.8, 2.5)).max() for center in centers)
    assert nearest <= 0.5


def test_the_command_takes_a_spacing(lidc, tmp_path):
    command = ["lidc", str(lidc), "--output", str(tmp_path / "out"), "--votes", "paper"]
    for more, spacing in (
        ([], None),
        (["--resample"], [0.7, 0.7, 1.25]),
        (["--resample", "1", "1", "2"], [1.0, 1.0, 2.0]),
    ):
        listing = list_cases(get_parser().parse_args([*command, *more]))
        assert listing.options == {"votes": "paper", "spacing": spacing}
    for wrong, message in (("1", "found 1 numbers, expected none or x y z"), ("1 1 0", "0.05 to")):
        args = get_parser().parse_args([*command, "--resample", *wrong.split()])
        with pytest.raises(ValueError, match=message):
            list_cases(args)


def test_what_does_not_belong_together_is_told(lidc, tmp_path):
    files, xml = write_lidc(tmp_path)
    write_lidc(tmp_path, patient="LIDC-IDRI-0002")
    xml.rename(tmp_path / "001.xml")
    (tmp_path / "LIDC-IDRI-0002" / "001.xml").write_text(
        '<IdriReadMessage xmlns="http://www.nih.gov"/>'
    )
    for file in files:
        file.unlink()
    listing = list_lidc(tmp_path)
    assert not listing.cases and not listing.damaged
    told = "\n".join(listing.left_out)
    assert "found no XML file with its annotations" in told
    assert "001.xml: found no CT series" in told
    assert "1 XML files that are not annotations of CT" in told


def test_it_trains_and_evaluates(tmp_path):
    write_lidc(tmp_path / "source")
    files, xml = write_lidc(tmp_path / "source", patient="LIDC-IDRI-0002")
    xml.write_text(readings_xml(files, [[], [], [], []]))
    listing = list_lidc(tmp_path / "source", votes="paper", spacing=(0.7, 0.7, 1.25))
    assert run_import(listing, tmp_path / "nodules", format="lidc", workers=1).written
    volume_set = check_trains_and_evaluates(tmp_path / "nodules", tmp_path)
    assert [len(volume.lesions) for volume in volume_set.volumes] == [5, 0]
    assert [volume.spacing for volume in volume_set.volumes] == [(0.7, 0.7, 1.25)] * 2


def test_cases_are_told_by_their_patients(lidc):
    (case,) = list_lidc(lidc).cases
    assert (case.name, case.patient) == ("LIDC-IDRI-0001", "LIDC-IDRI-0001")
    assert len(case.sources) == SHAPE[0] + 1


BOMB = '<!DOCTYPE a [<!ENTITY b "c">]>'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<LidcReadMessage", BOMB + "<LidcReadMessage", "found a document type declaration ('a')"),
        ("</LidcReadMessage>", "", "found no readable XML (no element found"),
        ("UTF-8", "UTF-38", "found no readable XML (unknown encoding: UTF-38"),
        ("<SeriesInstanceUid>", "<SeriesInstanceUid/><x>", "found no readable XML (mismatched"),
        ("SeriesInstanceUid>", "SeriesUid>", "found no ResponseHeader/SeriesInstanceUid"),
        ("<malignancy>5<", "<malignancy>7<", "nodule 'A': malignancy: found '7', expected 1 to 5"),
        (">TRUE<", ">MAYBE<", "nodule 'A': inclusion: found 'MAYBE', expected TRUE or FALSE"),
        ("<xCoord>", "<xCoord>-", "nodule 'A': xCoord: found '-"),
        ("<yCoord>", "<yCoord>1.5", "nodule 'A': yCoord: found '1.5"),
        ("<imageZposition>", "<imageZposition>nan", "imageZposition: found 'nan"),
    ],
)
def test_damaged_xml_is_told_in_one_line(lidc, tmp_path, old, new, message):
    xml = tmp_path / "001.xml"
    xml.write_text(xml_text(lidc).replace(old, new))
    with pytest.raises(ValueError) as error:
        read_readings(xml)
    line = str(error.value)
    assert line.startswith(f"{xml}: ") and message in line and "\n" not in line


def test_a_document_type_is_found_in_any_encoding(tmp_path):
    xml = tmp_path / "001.xml"
    xml.write_bytes(f'<?xml version="1.0" encoding="UTF-16"?>{BOMB}<a/>'.encode("utf-16"))
    with pytest.raises(ValueError, match="found a document type declaration"):
        read_readings(xml)


def test_damaged_xml_is_a_damaged_case(tmp_path):
    (tmp_path / "001.xml").write_text(BOMB)
    (line,) = list_lidc(tmp_path).damaged
    assert line.startswith(f"{tmp_path / '001.xml'}: found a document type declaration")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xCoord>", "<xCoord>9", "reading session 1, nodule 'A': found the point"),
        (
            "<imageZposition>",
            "<imageSOP_UID>1.2</imageSOP_UID><imageZposition>90",
            "of an image that is not in the series",
        ),
    ],
)
def test_outlines_outside_of_the_scan_are_told_in_one_line(lidc, tmp_path, old, new, message):
    xml = tmp_path / "001.xml"
    xml.write_text(xml_text(lidc).replace(old, new))
    with pytest.raises(ValueError) as error:
        list_lidc(lidc, tmp_path).cases[0].read()
    assert str(error.value).startswith(f"{xml}, ") and message in str(error.value)


def test_of_a_series_in_parts_the_largest_is_read(tmp_path):
    files, _ = write_lidc(tmp_path)
    dataset = pydicom.dcmread(files[0])
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PixelSpacing = [2.0, 2.0]
    dataset.save_as(files[0].with_name("000.dcm"))
    listing = list_lidc(tmp_path)
    (case,) = listing.cases
    assert len(case.read().volume.lesions) == 4
    assert any("found 1 slices, but 7 others of its series" in line for line in listing.left_out)


def test_two_files_of_one_series_are_told(lidc, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.xml").write_text(xml_text(lidc))
    assert not list_lidc(lidc, tmp_path).damaged
    (tmp_path / "b.xml").write_text(xml_text(lidc).replace("<malignancy>5", "<malignancy>4"))
    (line,) = list_lidc(lidc, tmp_path).damaged
    assert line.startswith(f"{tmp_path / 'b.xml'}: found a second file for series")


def test_no_files_at_all_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no XML file of LIDC-IDRI in it"):
        list_lidc(tmp_path)
    with pytest.raises(ValueError, match="votes: found 'all', expected one of authors, paper"):
        list_lidc(tmp_path, votes="all")
