"""The command with a PACS: Orthanc, and addresses where there is none."""

from lesion_d2.findings import read_findings
from lesion_d2.scans.dicomweb import DicomWeb
from lesion_d2.scans.writing import write_dicom
from lesion_d2.tools.predict import pacs, running
from lesion_d2.tools.predict.__main__ import main

import pytest
from orthanc_server import MISSING, PASSWORD, USER, running_orthanc
from tiny_prediction import SPACING, make_arguments, make_volume, read_summary, write_run

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("dicomweb_client")
pytest.importorskip("highdicom")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pacs") / "run"
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as url:
        yield url


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in ("DICOMWEB_TOKEN", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DICOMWEB_USER", USER)
    monkeypatch.setenv("DICOMWEB_PASSWORD", PASSWORD)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_study_is_fetched_and_the_results_are_stored(run, orthanc, tmp_path, monkeypatch):
    files = write_dicom(tmp_path / "series", make_volume(0), SPACING)
    study = pydicom.dcmread(files[0]).StudyInstanceUID
    url = orthanc
    server = DicomWeb(url)
    server.store(files)
    flags = ("--dicomweb", url, "--study", study, "--store", "--score-threshold", "0")
    output = tmp_path / "out"
    arguments = make_arguments(run, output, flags=flags)
    assert main(arguments) == 0
    kinds = [entry.modality for entry in server.series(study)]
    assert sorted(kinds) == ["CT", "SEG", "SR"]
    [(name, row)] = read_summary(output).items()
    assert (row["slices"], row["error"]) == ("4", "")
    # What is there is what was written.
    for entry in server.series(study):
        if entry.modality == "CT":
            continue
        fetched = server.fetch(study, tmp_path / "fetched", series_uid=entry.uid)
        file = {"SR": "structured_report.dcm", "SEG": "segmentation.dcm"}[entry.modality]
        stored = [pydicom.dcmread(path) for path in fetched.rglob(f"{entry.uid[-64:]}/*.dcm")]
        written = pydicom.dcmread(output / name / file)
        assert [dataset.SOPInstanceUID for dataset in stored] == [written.SOPInstanceUID]
        assert stored[0].PatientID == "phantom" and stored[0].Modality == entry.modality
    findings = read_findings(output / name / "findings.json")
    sources = {part.sop_instance_uid for f in findings.findings for part in f.slices}
    assert sources <= {pydicom.dcmread(file).SOPInstanceUID for file in files}
    # Once more: nothing is fetched, predicted or stored again.
    for module, part in ((pacs.DicomWeb, "fetch"), (pacs.DicomWeb, "store")):
        monkeypatch.setattr(module, part, pytest.fail)
    monkeypatch.setattr(running, "LesionPredictor", pytest.fail)
    assert main(arguments) == 0


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_pacs_that_refuses_is_one_line(run, orthanc, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DICOMWEB_PASSWORD", "wrong")
    series = tmp_path / "series"
    write_dicom(series, make_volume(0), SPACING)
    url = orthanc
    flags = ("--dicomweb", url, "--study", "1.2.3", "--store", "--score-threshold", "0")
    assert main(make_arguments(run, tmp_path / "out", series, flags=flags)) == 1
    rows = read_summary(tmp_path / "out")
    refused = rows.pop("study 1.2.3")
    assert "asks for another user or password" in refused["error"]
    [(name, row)] = rows.items()
    assert row["slices"] == "4" and row["error"].startswith(f"not stored: {url}: the server asks")
    assert (tmp_path / "out" / name / "structured_report.dcm").is_file()
    assert PASSWORD not in capsys.readouterr().err


def test_no_pacs_at_an_address(run, tmp_path, monkeypatch):
    class Unreachable(DicomWeb):
        def __init__(self, url):
            super().__init__(url, attempts=1)

    monkeypatch.setattr(pacs, "DicomWeb", Unreachable)
    url = "http://127.0.0.1:9/dicom-web"  # the port of "discard"
    flags = ("--dicomweb", url, "--study", "1.2.3")
    assert main(make_arguments(run, tmp_path / "out", flags=flags)) == 1
    [row] = read_summary(tmp_path / "out").values()
    assert row["scan"] == "study 1.2.3" and row["error"].startswith(f"{url}: the server cannot be")


class _Server:
    """Has any study, of one file; ``meanwhile`` is called while it is fetched."""

    meanwhile = staticmethod(lambda: None)

    def __init__(self, url):
        pass

    def fetch(self, study, folder, *, series_uid):
        (folder / study).mkdir(parents=True)
        (folder / study / "1.dcm").write_text(f"half of {study}")
        self.meanwhile()
        (folder / study / "1.dcm").write_text(f"all of {study}")
        return folder / study


def test_a_study_is_fetched_by_one_process_at_a_time_others_meanwhile(tmp_path, monkeypatch):
    def fetch(study):
        return pacs.fetch_study("https://a.b/c", study, None, tmp_path)

    def meanwhile():
        monkeypatch.setattr(_Server, "meanwhile", staticmethod(lambda: None))
        with pytest.raises(BlockingIOError, match="another process has locked this file"):
            fetch("1.2")
        others.append(fetch("1.3"))

    others = []
    monkeypatch.setattr(pacs, "DicomWeb", _Server)
    monkeypatch.setattr(_Server, "meanwhile", staticmethod(meanwhile))
    first = fetch("1.2")
    assert (first / "1.dcm").read_text() == "all of 1.2"
    assert (others[0] / "1.dcm").read_text() == "all of 1.3"
    monkeypatch.setattr(_Server, "fetch", pytest.fail)
    assert [fetch("1.2"), fetch("1.3")] == [first, *others]


def test_what_a_killed_fetch_leaves_is_not_taken_for_the_study(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(partial, folder):
        raise Killed  # all of it is there, but for the last renaming

    monkeypatch.setattr(pacs, "DicomWeb", _Server)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pacs, "replace_folder", die)
        pacs.fetch_study("https://a.b/c", "1.2", None, tmp_path)
    folder = pacs.fetch_study("https://a.b/c", "1.2", None, tmp_path)
    assert not folder.parent.name.startswith(".")
    assert [path for path in tmp_path.rglob("*.dcm")] == [folder / "1.dcm"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "found neither --input nor --study"),
        (("--study", "1.2"), "found only --study, expected --dicomweb"),
        (("--dicomweb", "http://127.0.0.1:9"), "found neither --input nor --study"),
        (("--series", "1.2", "--dicomweb", "http://127.0.0.1:9"), "found neither --input nor --st"),
    ],
)
def test_arguments_that_do_not_go_together(run, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        main(make_arguments(run, tmp_path, flags=flags))
    assert stop.value.code == 2 and message in capsys.readouterr().err
