"""pydicom's own test files: each has the outcome that it should have.

They are the files of its package and of pydicom-data, as far as these are installed; nothing is
downloaded.
"""

import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from lesion_d2.scans import find_scans, read_scan

import numpy as np
import pydicom
import pytest

PACKAGE = Path(pydicom.__file__).parent / "data" / "test_files"
MORE = Path(pydicom.__file__).parents[1] / "data_store" / "data"

#: What is read, from one file or a folder: slices, rows, columns, lowest and highest HU.
READ = {
    PACKAGE / "CT_small.dcm": (1, 128, 128, -896, 1167),
    PACKAGE / "693_J2KI.dcm": (1, 512, 512, -3995, 1812),  # JPEG 2000, lossy
    PACKAGE / "J2K_pixelrep_mismatch.dcm": (1, 512, 512, -2000, 1896),
    PACKAGE / "dicomdirtests" / "98892001" / "CT5N": (5, 16, 16, -888, 85),
    MORE / "693_J2KR.dcm": (1, 512, 512, -3024, 1468),
    MORE / "693_UNCI.dcm": (1, 512, 512, -3995, 1812),
    MORE / "693_UNCR.dcm": (1, 512, 512, -3024, 1468),
    MORE / "bad_sequence.dcm": (1, 512, 512, -1011, 1243),  # JPEG lossless
}
#: Series that are CT and cannot be a scan, and why.
REFUSED = {
    PACKAGE / "dicomdirtests" / "77654033" / "CT2": "found a gap of 202.5 mm between",
    PACKAGE / "dicomdirtests" / "98892001" / "CT2N": "found a localizer",
    PACKAGE / "dicomdirtests" / "DICOMDIR": "found another file, expected DICOM",
    PACKAGE / "dicomdirtests" / "TINY_ALPHA": "found no pixels",
    MORE / "eCT_Supplemental.dcm": "found a perfusion map",
    MORE / "explicit_VR-UN.dcm": "found one slice and no thickness",
}
#: All that is left out of the two folders, by its reason.
REASONS = {
    "US": "found the modality 'US', expected CT",
    "MR": "found the modality 'MR', expected CT",
    "NM": "found the modality 'NM', expected CT",
    "CR": "found the modality 'CR', expected CT",
    "OT": "found the modality 'OT', expected CT",
    "SR": "found the modality 'SR', expected CT",
    "SEG": "found the modality 'SEG', expected CT",
    "ECG": "found the modality 'ECG', expected CT",
    "RTDOSE": "found the modality 'RTDOSE', expected CT",
    "RTPLAN": "found the modality 'RTPLAN', expected CT",
    "RTSTRUCT": "found the modality 'RTSTRUCT', expected CT",
    "secondary": "found a secondary capture, expected CT images",
    "other class": "Image Storage, expected CT Image Storage",
    "no class": "found no SOP Class UID, expected CT Image Storage",
    "other": "found other files, expected DICOM, NIfTI, MetaImage, NRRD, or a folder of",
    "localizer": "found a localizer, expected axial slices",
    "no pixels": "found no pixels, expected an image",
    "perfusion": "found a perfusion map, expected HU",
    "copy": "found a copy of another file, which is read",
    "gap": "expected at most twice the 1.25 mm between slices",
    "thickness": "found one slice and no thickness",
}
#: How many files are left out for each of them.
COUNTS = {
    PACKAGE: {
        "US": 5, "MR": 27, "NM": 4, "CR": 3, "OT": 23, "SR": 3, "SEG": 2, "ECG": 1, "RTDOSE": 7,
        "RTPLAN": 3, "RTSTRUCT": 1, "secondary": 8, "other class": 2, "no class": 3, "localizer": 2,
        "no pixels": 51, "gap": 1, "other": 7,
    },
    MORE: {
        "US": 16, "MR": 11, "NM": 2, "CR": 8, "OT": 23, "SEG": 2, "perfusion": 1, "copy": 1,
        "thickness": 1,
    },
}  # fmt: skip
VERSIONS = {PACKAGE: "3.0.2", MORE: "1.0.0"}
NAMES = {PACKAGE: "pydicom", MORE: "pydicom-data"}


def needs(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name} is not installed")
    return path


@pytest.mark.parametrize("path", READ, ids=lambda path: path.name)
def test_ct_is_read(path):
    scan = read_scan(needs(path))
    assert (*scan.volume.shape, scan.volume.min(), scan.volume.max()) == READ[path]


@pytest.mark.parametrize("path", READ, ids=lambda path: path.name)
def test_another_library_reads_the_same_values(path):
    """GDCM, in ITK: sums of all slices tell them apart, in whatever order they come."""
    sitk = pytest.importorskip("SimpleITK")
    files = sorted(needs(path).iterdir()) if path.is_dir() else [path]
    expected = np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[0] for file in files])
    volume = read_scan(path).volume
    order = [
        np.argsort([int(hu.sum(dtype=np.int64)) for hu in stack]) for stack in (volume, expected)
    ]
    assert (volume[order[0]] == expected[order[1]]).all()


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.name)
def test_ct_that_is_no_scan(path):
    with pytest.raises(ValueError) as error:
        read_scan(needs(path))
    assert REFUSED[path] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("top", COUNTS, ids=NAMES.get)
def test_every_file_has_its_reason(top):
    """Of the version whose files were looked through; other versions may have others."""
    found = find_scans([needs(top)])
    counts = Counter()
    for line in found.left_out:
        (reason,) = (name for name, text in REASONS.items() if text in line)
        more = re.search(r" and (\d+) more", line)
        counts[reason] += 1 + int(more[1] if more else 0)
    if version(NAMES[top]) != VERSIONS[top]:
        pytest.skip(f"{NAMES[top]} is not of version {VERSIONS[top]}")
    assert counts == COUNTS[top] and len(found.candidates) == 4 - (top == MORE)
