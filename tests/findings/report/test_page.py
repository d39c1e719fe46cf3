"""The report's file: what it must and must not contain."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

from lesion_d2.findings.report import page, write_report
from lesion_d2.findings.report.identity import identity_remover
from lesion_d2.findings.report.packing import encode_slice
from lesion_d2.scans import read_scan

import numpy as np
import pytest

EVIL = "</script><script>alert(1)</script><!-- & \" ' \u2028"


class Page(HTMLParser):
    """Elements, texts of scripts and styles, and visible text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.contents: list[tuple[str, dict, str]] = []
        self.words = ""
        self.inside = False  # a script or style
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag in ("script", "style")
        if self.inside:
            self.contents.append((*self.elements[-1], ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:  # it comes in pieces
            tag, attributes, before = self.contents.pop()
            self.contents.append((tag, attributes, before + data))
        else:
            self.words += data

    def scripts(self, **attributes) -> list[str]:
        return [
            data
            for tag, have, data in self.contents
            if tag == "script" and all(have.get(key) == value for key, value in attributes.items())
        ]


def read(file) -> Page:
    return Page(file.read_text(encoding="utf-8"))


def test_slices_and_findings_stand_in_the_file(report_file, small_scan):
    found = read(report_file)
    data = json.loads(found.scripts(id="data")[0])
    assert [one["number"] for one in data["findings"]] == [1, 2, 3]
    assert data["slices"] == list(range(12))
    for z in data["slices"]:
        coded = base64.b64decode(found.scripts(id=f"slice-{z}")[0])
        assert coded == encode_slice(small_scan.volume[z])
    assert "All 12 slices are in this file." in found.words


def test_footer_tells_what_made_the_findings(report_file):
    words = read(report_file).words
    for text in (
        "lesion_d2 0.1.0",
        "retina_unet.yaml",
        "model_best.pth (SHA-256 abab",
        "score 0.3 or more: 0.5 false positives per image on phantom_test",
        "64 × 48 × 12 voxels of 0.80 × 1.20 × 5.00 mm",
        "Not a medical device",
    ):
        assert text in words
    assert "/home/somebody" not in report_file.read_text(encoding="utf-8")


def test_nothing_can_be_loaded(report_file):
    found = read(report_file)
    policy = next(a["content"] for _, a in found.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy and "http" not in policy
    for kind, text in (
        ("style", next(data for tag, _, data in found.contents if tag == "style")),
        ("script", found.scripts()[-1]),
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    for _, attributes in found.elements:
        assert not {"src", "srcset", "action", "data", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")


def test_text_of_strangers_is_text(tmp_path, small_scan, small_findings):
    write_report(
        tmp_path / "r.html",
        dataclasses.replace(small_scan, name=EVIL, messages=(f"slice {EVIL}",)),
        dataclasses.replace(
            small_findings,
            findings=(dataclasses.replace(small_findings.findings[0], category=EVIL),),
            algorithm=dataclasses.replace(
                small_findings.algorithm, config_file=EVIL, name=EVIL, meta_architecture=EVIL
            ),
            operating_point=dataclasses.replace(small_findings.operating_point, dataset=EVIL),
            messages=(EVIL,),
        ),
    )
    found = read(tmp_path / "r.html")
    scripts = [attributes for tag, attributes in found.elements if tag == "script"]
    assert [one.get("id") for one in scripts] == ["data", *(f"slice-{z}" for z in range(12)), None]
    assert found.words.count("alert(1)") >= 6
    json.loads(found.scripts(id="data")[0])


def test_json_cannot_end_its_script():
    value = {EVIL: [EVIL, "<!--<script>"]}
    text = page.json_in_html(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError):
        page.json_in_html([float("nan")])


@pytest.fixture
def named_scan(small_scan):
    """A scan whose patient, ID and dates stand in its headers, its name and its messages."""
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
    header = pydicom.Dataset()
    header.PatientName = "O'Neil<script>^Mary Ann"
    header.PatientID = "MRN-778812"
    header.PatientBirthDate = "19510203"
    header.StudyDate = "20240506"
    header.PatientSex = "F"
    header.StudyID = "1"
    return dataclasses.replace(
        small_scan,
        name="mary_ann_20240506_1_77881234",
        headers=(header,) * 12,
        messages=("/data/MRN-778812/2024-05-06/o'neil<SCRIPT>: 1 slice missing",),
    )


def test_identity_is_taken_out(tmp_path, named_scan, small_findings):
    write_report(tmp_path / "r.html", named_scan, small_findings)
    text = (tmp_path / "r.html").read_text(encoding="utf-8").lower()
    text = re.sub(r'<script type="text/plain".*?</script>', "", text)  # slices, by chance
    for secret in ("neil", "mary", "ann_", "778812<", "mrn-", "1951", "20240506", "2024-05-06"):
        assert secret not in text
    assert "[removed]_[removed]_1_77881234" in text
    assert "1 slice missing" in text


@pytest.mark.parametrize(
    "patient, text, expected",
    [
        ("Wu^Li=吴^丽", "/data/吴丽_CT/Li Wu/wu.dcm", "/data/[removed]_CT/[removed]/[removed].dcm"),
        ("Yamada^Tarou=山田^太郎", "CT_山田太郎_ct, 太郎", "CT_[removed]_ct, [removed]"),
        (
            "Müller^Zoë",
            "mu\u0308ller, M_ller_Zo_1, Mu_ller",
            "[removed], [removed]1, [removed]",
        ),
        ("A^B", "a_b, a CT of b", "[removed], a CT of b"),
        ("Li^Na", "linear, align, LI NA, lina", "linear, align, [removed], [removed]"),
        ("", "nothing is known", "nothing is known"),
    ],
)
def test_names_are_taken_out_however_they_are_written(named_scan, patient, text, expected):
    header = named_scan.headers[0]
    header.PatientName, header.StudyDate, header.PatientBirthDate = patient, "", ""
    assert identity_remover(named_scan)(text) == expected


def test_dates_are_taken_out_however_they_are_written(named_scan):
    text = "2024_05_06 2024.05.06 20240506 06.05.2024 05-06-2024, slice 6 of 2024"
    found = identity_remover(named_scan)(text)
    assert found == "[removed] [removed] [removed] [removed] [removed], slice 6 of 2024"


def test_identity_is_shown_where_wanted(tmp_path, named_scan, small_findings):
    write_report(tmp_path / "r.html", named_scan, small_findings, with_identity=True)
    found = read(tmp_path / "r.html")
    assert "Patient: O'Neil<script>^Mary Ann" in found.words
    assert "ID: MRN-778812" in found.words and "Study date: 20240506" in found.words
    assert "mary_ann_20240506_1_77881234" in found.words


@pytest.mark.parametrize("with_identity", [False, True])
def test_report_of_a_dicom_series(tmp_path, small_scan, small_findings, with_identity):
    pytest.importorskip("pydicom", reason="needs pydicom")
    from made_up_scans import change, set_values, write_series

    folder = tmp_path / "Doe_Jane_19510203"
    folder.mkdir()
    write_series(folder, small_scan.volume, small_scan.spacing)
    secrets = {"PatientName": "Doe^Jane", "PatientID": "MRN5512", "PatientBirthDate": "19510203"}
    change(folder.iterdir(), set_values(**secrets))
    scan = read_scan(folder)
    assert (scan.volume == small_scan.volume).all() and "Doe_Jane" in scan.name
    write_report(tmp_path / "r.html", scan, small_findings, with_identity=with_identity)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    text = re.sub(r'<script type="text/plain".*?</script>', "", text).lower()
    for secret in ("doe^jane", "doe_jane", "mrn5512", "19510203"):
        assert (secret in text) == with_identity


def test_report_stays_below_its_limit(tmp_path, monkeypatch, small_scan, small_findings):
    noise = np.random.default_rng(3).integers(-1024, 3072, (200, 48, 64), dtype=np.int16)
    scan = dataclasses.replace(small_scan, volume=noise)
    findings = dataclasses.replace(small_findings, shape=noise.shape)
    monkeypatch.setattr(page, "MAX_BYTES", 300_000)
    write_report(tmp_path / "r.html", scan, findings)
    assert 250_000 < (tmp_path / "r.html").stat().st_size <= 300_000
    found = read(tmp_path / "r.html")
    held = json.loads(found.scripts(id="data")[0])["slices"]
    assert f"{len(held)} of 200 slices are in this file" in found.words
    assert {8, 3, 9} <= set(held)
    write_report(tmp_path / "full.html", scan, findings, full=True)
    assert json.loads(read(tmp_path / "full.html").scripts(id="data")[0])["slices"] == list(
        range(200)
    )


def test_a_report_without_findings_says_so(tmp_path, small_scan, small_findings):
    write_report(tmp_path / "r.html", small_scan, dataclasses.replace(small_findings, findings=()))
    found = read(tmp_path / "r.html")
    assert "Nothing was found in this scan." in found.words and "0 findings" in found.words


def test_findings_of_another_scan(tmp_path, small_scan, small_findings):
    other = dataclasses.replace(small_findings, shape=(13, 48, 64), scan_name="other")
    with pytest.raises(
        ValueError,
        match=r"other: found .*\(13, 48, 64\), expected \(12, 48, 64\), the shape of phantom_1",
    ):
        write_report(tmp_path / "r.html", small_scan, other)
    beyond = dataclasses.replace(small_findings.findings[0], key_slice=12)
    with pytest.raises(ValueError, match=r"finding 1: found key slice 12, expected 0 to 11$"):
        write_report(
            tmp_path / "r.html", small_scan, dataclasses.replace(small_findings, findings=(beyond,))
        )
    assert not list(tmp_path.iterdir())
