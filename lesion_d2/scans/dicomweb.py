"""DICOMweb client that fetches scans from a PACS and stores results."""

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from ..utils.files import atomic_write, one_line
from .dicom.files import quiet
from .limits import require

if TYPE_CHECKING:
    import pydicom

#: Environment variables with credentials: user and password, or a bearer token.
USER_VARIABLE = "DICOMWEB_USER"
PASSWORD_VARIABLE = "DICOMWEB_PASSWORD"
TOKEN_VARIABLE = "DICOMWEB_TOKEN"

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_TIMEOUT = 60.0  # seconds without data
_MAX_INSTANCES = 20_000
_FAILURE = 0x0110  # processing failure, if a server gives no other reason
_REFUSED = {401: "asks for another user or password", 403: "forbids this", 404: "has no such study"}


class SeriesEntry(NamedTuple):
    """A series on a server."""

    uid: str
    modality: str


class DicomWeb:
    """A DICOMweb server.

    Credentials come from ``DICOMWEB_TOKEN``, or ``DICOMWEB_USER`` and ``DICOMWEB_PASSWORD`` in the
    environment, or else from ``~/.netrc``; never from the URL, which other users of the machine can
    see. Certificates are verified, against ``REQUESTS_CA_BUNDLE`` if it is set.

    Args:
        url: URL of the service, such as ``https://pacs.example.org/dicom-web``.
        attempts: how often a request is tried if the server does not answer.

    Raises:
        ValueError: the URL is invalid, contains a password, or would send one unencrypted to
            another machine.
        ImportError: dicomweb-client is not installed.
    """

    def __init__(self, url: str, *, attempts: int = 3):
        api = require("dicomweb_client.api")
        self.url = url.rstrip("/")
        session = _session(self.url)
        self._reader, self._writer = (
            api.DICOMwebClient(self.url, session=session, timeout=_TIMEOUT) for _ in range(2)
        )
        self._reader.set_http_retry_params(
            retry=attempts > 1, max_attempts=attempts, wait_exponential_multiplier=500
        )
        self._writer.set_http_retry_params(retry=False)  # its retries would send an empty body

    def series(self, study_uid: str) -> list[SeriesEntry]:
        """All series of a study.

        Raises:
            ValueError: the UID is invalid, or the server refuses, has no such study, or gives an
                unexpected answer.
            ConnectionError: the server cannot be reached.
        """
        _check_uid(study_uid)
        with self._told(f"study {study_uid}"):
            found = self._reader.search_for_series(study_uid)
            entries = [
                SeriesEntry(_value(item, "0020000E"), _value(item, "00080060")) for item in found
            ]
        if not entries:
            raise ValueError(f"{self.url}: found no study {study_uid}")
        return sorted(entries)

    def fetch(
        self, study_uid: str, folder: str | os.PathLike, *, series_uid: str | None = None
    ) -> Path:
        """Fetch the CT series of a study as DICOM files, for :func:`~lesion_d2.scans.find_scans`.

        Args:
            study_uid: Study Instance UID.
            folder: a folder for the study is created in it.
            series_uid: Series Instance UID; None for all CT series.

        Returns:
            The study's folder, with one folder per series.

        Raises:
            ValueError, ConnectionError: see :meth:`series`; or the study has no such series, or no
                CT series.
        """
        entries = self.series(study_uid)
        if series_uid is None:
            chosen = [entry.uid for entry in entries if entry.modality == "CT"]
        else:
            chosen = [entry.uid for entry in entries if entry.uid == series_uid]
        if not chosen:
            expected = "a series of CT" if series_uid is None else f"the series {series_uid}"
            found = ", ".join(sorted({entry.modality or "?" for entry in entries}))
            raise ValueError(
                f"{self.url}: found {len(entries)} series ({found}) in study {study_uid}, expected "
                f"{expected}"
            )
        study = Path(folder) / f"study_{study_uid[-12:].replace('.', '_')}"
        for uid in chosen:
            self._fetch_series(study_uid, uid, study / uid[-64:])
        return study

    def store(self, files: Iterable[str | os.PathLike]) -> None:
        """Store DICOM files, such as an SR and a SEG, one by one.

        Raises:
            ValueError: a file is not DICOM, or the server refuses it.
            ConnectionError: the server cannot be reached.
        """
        pydicom = require("pydicom")
        for file in files:
            try:
                dataset = pydicom.dcmread(file)
            except pydicom.errors.InvalidDicomError as error:
                raise ValueError(f"{file}: found no DICOM file ({one_line(error)})") from None
            with self._told(os.fspath(file)):
                answer = self._writer.store_instances([dataset])
                failed = answer.get("FailedSOPSequence") if answer is not None else None
            if failed:
                reason = int(failed[0].get("FailureReason") or _FAILURE)
                raise ValueError(
                    f"{self.url}: {file} was not stored, the server's reason is 0x{reason:04X}"
                )

    def _fetch_series(self, study_uid: str, series_uid: str, folder: Path) -> None:
        _check_uid(series_uid)
        folder.mkdir(parents=True, exist_ok=True)
        anything = (("application/dicom", "*"),)  # any transfer syntax, as stored
        with quiet(), self._told(f"series {series_uid}"):
            datasets = self._reader.iter_series(study_uid, series_uid, media_types=anything)
            count = 0
            for count, dataset in enumerate(datasets, 1):
                if count > _MAX_INSTANCES:
                    raise ValueError(f"found more than {_MAX_INSTANCES} instances")
                _save(dataset, folder / f"{count:05d}.dcm")
            if count == 0:
                raise ValueError("found no instance in it")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Convert errors of requests, answers and their content to one-line errors."""
        import requests
        from retrying import RetryError

        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            meaning = _REFUSED.get(status, "refuses")
            raise ValueError(
                f"{self.url}: the server {meaning} (status {status}), asked for {what}"
            ) from None
        except RetryError:
            raise ConnectionError(f"{self.url}: the server is busy, asked for {what}") from None
        except (requests.exceptions.JSONDecodeError, requests.exceptions.InvalidURL) as error:
            raise ValueError(
                f"{self.url}: {what}: found another answer ({_brief(error)})"
            ) from None
        except requests.RequestException as error:
            kind = type(error).__name__
            raise ConnectionError(
                f"{self.url}: the server cannot be reached ({kind}: {_brief(error)})"
            ) from None
        except OSError:  # of the disk
            raise
        except Exception as error:  # from the content of an answer
            raise ValueError(f"{self.url}: {what}: {_brief(error)}") from None


def _session(url: str):
    """A session with credentials."""
    import requests

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"found the URL {_without_user(url)!r}, expected https://<server>/<path>")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            f"found a user or password in the URL of {parts.hostname}, expected them in ~/.netrc "
            f"or in {USER_VARIABLE} and {PASSWORD_VARIABLE}"
        )
    session = requests.Session()
    user, password, token = map(os.environ.get, (USER_VARIABLE, PASSWORD_VARIABLE, TOKEN_VARIABLE))
    if user and password is None:
        raise ValueError(f"found {USER_VARIABLE} without {PASSWORD_VARIABLE} in the environment")
    if token:
        session.auth = _Bearer(token)
    elif user:
        session.auth = (user, password)
    is_told = session.auth or requests.utils.get_netrc_auth(url)
    if is_told and parts.scheme == "http" and not _is_this_machine(parts.hostname):
        raise ValueError(f"{url}: a password would be sent unencrypted, expected https")
    return session


class _Bearer:
    """Adds a token to requests. A header of the session would be replaced by ``~/.netrc``."""

    def __init__(self, token: str):
        self._token = token

    def __call__(self, request):
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def _check_uid(uid: str) -> None:
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise ValueError(f"found the UID {uid[:80]!r}, expected digits and dots, at most 64")


def _value(item: dict, tag: str) -> str:
    """The first value of an attribute in an answer's JSON, or ""."""
    values = item.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _save(dataset: "pydicom.Dataset", file: Path) -> None:
    with atomic_write(file) as partial:
        dataset.save_as(partial, enforce_file_format=True)


def _brief(error: BaseException) -> str:
    return one_line(error)[:200] or type(error).__name__
