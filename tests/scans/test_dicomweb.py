"""DICOMweb, against Orthanc and against servers that refuse."""

import http.server
import shutil
import ssl
import stat
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

from lesion_d2.scans import read_scan

import pydicom
import pytest
from made_up_scans import SPACING, change, make_volume, set_values, write_series

pytest.importorskip("dicomweb_client")
from lesion_d2.scans.dicomweb import DicomWeb, SeriesEntry

from orthanc_server import MISSING, PASSWORD, USER, running_orthanc
from pydicom import uid

needs_orthanc = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as url:
        yield url


@pytest.fixture(autouse=True)
def no_netrc(monkeypatch, tmp_path) -> Path:
    """No password but the test's own; a folder that is the user's home."""
    for name in ("DICOMWEB_USER", "DICOMWEB_PASSWORD", "DICOMWEB_TOKEN", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return home


@pytest.fixture
def user(monkeypatch):
    monkeypatch.setenv("DICOMWEB_USER", USER)
    monkeypatch.setenv("DICOMWEB_PASSWORD", PASSWORD)


@needs_orthanc
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLSLossless])
def test_what_is_stored_is_fetched(orthanc, user, tmp_path, syntax):
    volume = make_volume((5, 64, 48))
    files = write_series(tmp_path / "ct", volume, patient=f"p{syntax}")
    if syntax.is_encapsulated:
        change(files, lambda dataset, _: dataset.compress(syntax, generate_instance_uid=False))
    sr = write_series(tmp_path / "other", volume[:1], patient=f"p{syntax}", series_number=2)
    change(sr, set_values(Modality="SR", SOPClassUID=uid.Comprehensive3DSRStorage))
    first = pydicom.dcmread(files[0])
    server = DicomWeb(orthanc)
    server.store([*files, *sr])
    entries = server.series(first.StudyInstanceUID)
    other = pydicom.dcmread(sr[0]).SeriesInstanceUID
    assert sorted(entries) == sorted(
        [SeriesEntry(first.SeriesInstanceUID, "CT"), SeriesEntry(other, "SR")]
    )

    folder = server.fetch(first.StudyInstanceUID, tmp_path / "fetched")
    scan = read_scan(folder)
    assert (scan.volume == volume).all() and scan.spacing == SPACING
    assert [h.SOPInstanceUID for h in scan.headers] == [
        pydicom.dcmread(file).SOPInstanceUID for file in files
    ]
    assert scan.headers[0].file_meta.TransferSyntaxUID == syntax

    again = server.fetch(
        first.StudyInstanceUID, tmp_path / "again", series_uid=first.SeriesInstanceUID
    )
    assert (read_scan(again).volume == volume).all()
    with pytest.raises(ValueError, match=r"found 2 series \(CT, SR\) in study .*the series 1\.2$"):
        server.fetch(first.StudyInstanceUID, tmp_path / "none", series_uid="1.2")

    change(files[:1], set_values(StudyInstanceUID="1.2.3", Modality="MR", SOPInstanceUID="1.2.4"))
    server.store(files[:1])
    with pytest.raises(
        ValueError, match=r"series \(MR\) in study 1\.2\.3, expected a series of CT"
    ):
        server.fetch("1.2.3", tmp_path / "none")


@needs_orthanc
def test_user_and_password_come_from_netrc_or_the_environment(
    orthanc, no_netrc, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match=r"asks for another user or password \(status 401\)"):
        DicomWeb(orthanc).series("1.2")
    netrc = no_netrc / ".netrc"
    netrc.write_text(f'machine 127.0.0.1 login {USER} password "{PASSWORD}"\n')
    netrc.chmod(stat.S_IRUSR | stat.S_IWUSR)
    with pytest.raises(ValueError, match=r"found no study 1\.2$"):
        DicomWeb(orthanc).series("1.2")
    monkeypatch.setenv("DICOMWEB_USER", USER)
    monkeypatch.setenv("DICOMWEB_PASSWORD", "wrong")
    with pytest.raises(ValueError, match="status 401") as error:
        DicomWeb(orthanc).store(write_series(tmp_path / "ct", make_volume()[:1]))
    assert "wrong" not in str(error.value)


@needs_orthanc
def test_what_is_not_stored(orthanc, user, tmp_path):
    text = tmp_path / "a.dcm"
    text.write_text("text")
    with pytest.raises(ValueError, match=r"a\.dcm: found no DICOM file"):
        DicomWeb(orthanc).store([text])


class Answering(http.server.BaseHTTPRequestHandler):
    status, content_type, body = 200, "text/html", b"<html>Log in</html>"

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Type", self.content_type)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def log_message(self, *_):
        pass


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def answering():
    with serving(http.server.HTTPServer(("127.0.0.1", 0), Answering)) as url:
        yield url


class QuietServer(http.server.HTTPServer):
    def handle_error(self, *_):
        pass


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificates_are_verified(tmp_path, monkeypatch):
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += " -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -keyout key -out cert"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server = QuietServer(("127.0.0.1", 0), Answering)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setattr(Answering, "status", 404)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with serving(server) as url:
        url = url.replace("http:", "https:")
        with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED") as error:
            DicomWeb(url, attempts=1).series("1.2")
        assert "\n" not in str(error.value)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert"))
        with pytest.raises(ValueError, match="has no such study"):
            DicomWeb(url, attempts=1).series("1.2")


FAILED = (
    b'{"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]},'
    b'"00081197": {"vr": "US", "Value": [290]}}]}}'
)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "message"),
    [
        (200, "text/html", b"<html>Log in</html>", "series|study 1.2: "),
        (403, "text/html", b"", r"forbids this \(status 403\)"),
        (404, "text/html", b"", r"has no such study \(status 404\)"),
        (500, "text/html", b"", r"refuses \(status 500\)"),
        (200, "application/dicom+json", b"[{]", "study 1.2: found another answer"),
        (200, "application/dicom+json", b"[7]", "study 1.2: "),
        (204, "application/dicom+json", b"", "found no study 1.2"),
    ],
)
def test_servers_that_answer_something_else(
    answering, monkeypatch, status, content_type, body, message
):
    for name, value in (("status", status), ("content_type", content_type), ("body", body)):
        monkeypatch.setattr(Answering, name, value)
    with pytest.raises(ValueError, match=message) as error:
        DicomWeb(answering).series("1.2")
    assert str(error.value).startswith(answering) and "\n" not in str(error.value)


def test_a_server_that_stores_nothing(answering, monkeypatch, tmp_path):
    monkeypatch.setattr(Answering, "content_type", "application/dicom+json")
    monkeypatch.setattr(Answering, "body", FAILED)
    file = write_series(tmp_path / "ct", make_volume()[:1])[0]
    with pytest.raises(
        ValueError, match=r"0000\.dcm was not stored, the server's reason is 0x0122"
    ):
        DicomWeb(answering).store([file])


def test_servers_that_are_not_there(answering):
    with pytest.raises(ConnectionError, match="cannot be reached") as error:
        DicomWeb("http://127.0.0.1:9", attempts=1).series("1.2")
    assert "\n" not in str(error.value)
    with pytest.raises(ConnectionError, match="SSLError"):  # it does not speak TLS
        DicomWeb(answering.replace("http:", "https:"), attempts=1).series("1.2")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://a/b", "expected https://<server>/<path>"),
        ("pacs", "expected https://<server>/<path>"),
        ("https://me:secret@pacs/x", "found a user or password in the URL of pacs"),
    ],
)
def test_an_invalid_url_is_refused_without_its_password(url, message):
    with pytest.raises(ValueError, match=message) as error:
        DicomWeb(url)
    assert "secret" not in str(error.value)


def test_passwords_are_not_sent_in_the_clear(user, monkeypatch):
    with pytest.raises(ValueError, match=r"pacs/x: a password would be sent unencrypted"):
        DicomWeb("http://pacs/x")
    DicomWeb("https://pacs/x")
    DicomWeb("http://127.0.0.1/x")
    monkeypatch.delenv("DICOMWEB_PASSWORD")
    with pytest.raises(ValueError, match="DICOMWEB_USER without DICOMWEB_PASSWORD"):
        DicomWeb("https://pacs/x")


def test_a_token_goes_before_netrc(answering, no_netrc, monkeypatch):
    netrc = no_netrc / ".netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    netrc.chmod(stat.S_IRUSR | stat.S_IWUSR)
    monkeypatch.setenv("DICOMWEB_TOKEN", "abc")
    seen = []
    monkeypatch.setattr(Answering, "status", 403)
    original = Answering.do_GET
    monkeypatch.setattr(
        Answering,
        "do_GET",
        lambda self: seen.append(self.headers["Authorization"]) or original(self),
    )
    with pytest.raises(ValueError, match="status 403"):
        DicomWeb(answering).series("1.2")
    assert seen == ["Bearer abc"]


@pytest.mark.parametrize("text", ["../../x", "1.2/3", "", "1" * 65, "1..2"])
def test_uids_are_uids(text, tmp_path):
    server = DicomWeb("https://pacs/x")
    with pytest.raises(ValueError, match="expected digits and dots"):
        server.fetch(text, tmp_path)
