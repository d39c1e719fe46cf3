"""Find scans in files, folders and archives, and read them."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tqdm import tqdm

from ..utils.files import one_line
from .dicom import DicomListing, DicomSeries
from .dicom.files import quiet
from .itk import is_itk, open_itk
from .names import safe_name, unique_names
from .nifti import is_nifti, open_nifti
from .png import PngFolder, numbered_pngs
from .scan import Scan
from .stored import Storage, Stored, files_below, members_of, stored_file
from .volume_file import VolumeFile, stem_of

_FORMATS = "DICOM, NIfTI, MetaImage, NRRD, or a folder of <slice number>.png"
# Files that may accompany scans: voxels of a header, notes and tables.
_BESIDE = (".raw", ".zraw", ".csv", ".json", ".txt", ".md", ".xml")


@dataclass(frozen=True, eq=False)
class ScanCandidate:
    """A scan whose voxels have not been read.

    Args:
        name: name of the scan, unique in a list.
        format: see :class:`~lesion_d2.scans.Scan`.
        source: its file, or folder and series, for messages.
        num_slices: number of slices of the volume.
        spacing: x, y, z in mm.
        files: the files to read, with links resolved; for members of an archive, the archive.
        series_uid, study_uid: UIDs of DICOM, else None.
    """

    name: str
    format: str
    source: str
    num_slices: int
    spacing: tuple[float, float, float]
    files: tuple[str, ...]
    series_uid: str | None
    study_uid: str | None
    _read: Callable[[], Scan]

    def read(self) -> Scan:
        """Read the scan.

        Raises:
            ValueError: it is damaged.
        """
        return replace(self._read(), name=self.name)


@dataclass(frozen=True)
class ScanList:
    """Result of a search for scans.

    Args:
        candidates: scans that can be read.
        left_out: one line with the reason for everything else that might be a scan.
        damaged: the lines of ``left_out`` about CT scans that cannot be read: damaged files, gaps,
            missing packages. Other lines are about localizers and the like, or too few slices.
    """

    candidates: tuple[ScanCandidate, ...]
    left_out: tuple[str, ...]
    damaged: tuple[str, ...] = ()


def find_scans(
    paths: Iterable[str | os.PathLike] | str | os.PathLike,
    *,
    spacing: tuple[float, float, float] | None = None,
    allow_gaps: bool = False,
    min_slices: int = 1,
    skip: Callable[[str], bool] = lambda folder: False,
    progress: bool = False,
) -> ScanList:
    """Find all CT scans in files, folders and zip archives; only headers are read.

    Folders are searched recursively, and files may have any name. DICOM files are grouped into
    series, and series with several orientations, sizes or phases are split into scans, separately
    for each path. Names derive from the file or folder; for DICOM, ``<path>_<series number>_<end of
    the series UID>``.

    Args:
        paths: one or more DICOM files, NIfTI (``.nii``, ``.nii.gz``), MetaImage (``.mha``,
            ``.mhd``), NRRD (``.nrrd``, ``.nhdr``), zip archives with DICOM files, and folders of
            all these or of DeepLesion's ``<slice number>.png``.
        spacing: x, y, z in mm of all PNG folders; None for that in a ``DL_info.csv`` in the folder
            or one of its two parents.
        allow_gaps: interpolate across gaps of more than twice the slice spacing; otherwise scans
            with such gaps are left out.
        min_slices: scans with fewer slices are left out.
        skip: called with each folder below a path; True skips it and its content.
        progress: show a progress bar over files.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    finder = _Finder(spacing, allow_gaps, min_slices, skip)
    with quiet(), Storage() as storage, tqdm(disable=not progress, unit="file") as bar:
        for path in map(os.fspath, paths):
            finder.add_path(path, storage, bar)
    names = unique_names(candidate.name for candidate in finder.candidates)
    candidates = zip(finder.candidates, names, strict=True)
    return ScanList(
        tuple(replace(candidate, name=name) for candidate, name in candidates),
        tuple(finder.left_out),
        tuple(finder.damaged),
    )


def read_scan(
    path: str | os.PathLike,
    *,
    series: str | None = None,
    spacing: tuple[float, float, float] | None = None,
    allow_gaps: bool = False,
) -> Scan:
    """Read the only CT scan in a path, or the selected one.

    Args:
        path: see :func:`find_scans`.
        series: Series Instance UID or name of the scan, if the path contains several.
        spacing, allow_gaps: see :func:`find_scans`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there is no scan or more than one, or a file (with ``series``, of that scan) is
            damaged.
        ImportError: a package of the extra ``scans`` is not installed.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder")
    found = find_scans([path], spacing=spacing, allow_gaps=allow_gaps)
    chosen = [c for c in found.candidates if series in (None, c.series_uid, c.name)]
    if chosen and found.damaged and series is None:  # possibly slices of the scan
        more = f" ({len(found.damaged)} reasons, the first)" if len(found.damaged) > 1 else ""
        raise ValueError(f"{found.damaged[0]}{more}")
    if len(chosen) == 1:
        return chosen[0].read()
    if chosen or found.candidates:
        listed = "; ".join(
            f"{c.name} ({c.num_slices} slices{f', series {c.series_uid}' if c.series_uid else ''})"
            for c in chosen or found.candidates
        )
        wanted = "one" if series is None else f"one of series {series!r}"
        raise ValueError(f"{path}: found {len(chosen)} scans, expected {wanted}: {listed}")
    raise ValueError(_no_scan(path, found.left_out))


def _no_scan(path: str | os.PathLike, left_out: tuple[str, ...]) -> str:
    """One line with the reason, or for several with their number and the first."""
    if len(left_out) == 1:
        return left_out[0]
    more = f" ({len(left_out)} reasons, the first: {left_out[0]})" if left_out else ""
    return f"{path}: found no CT scan, expected {_FORMATS}{more}"


class _Finder:
    """Collects scans and reasons from paths."""

    def __init__(self, spacing, allow_gaps: bool, min_slices: int, skip: Callable[[str], bool]):
        self._spacing, self._allow_gaps, self._min_slices = spacing, allow_gaps, min_slices
        self._skip = skip
        self.candidates: list[ScanCandidate] = []
        self.left_out: list[str] = []
        self.damaged: list[str] = []

    def add_path(self, path: str, storage: Storage, bar: tqdm) -> None:
        """Search a file, folder or archive."""
        if os.path.isdir(path):
            self._add_folder(path, storage, bar)
        elif os.path.isfile(path):
            before = len(self.candidates) + len(self.left_out)
            listing = DicomListing(path, safe_name(stem_of(path)))
            self._add_file(path, storage, bar, listing)
            self._close(listing)
            if len(self.candidates) + len(self.left_out) == before:
                self.left_out.append(f"{path}: found another file, expected {_FORMATS}")
        else:
            self.left_out.append(f"{path}: no such file or folder")

    def _add_folder(self, top: str, storage: Storage, bar: tqdm) -> None:
        before = len(self.candidates) + len(self.left_out)
        listing = DicomListing(top, safe_name(os.path.basename(os.path.realpath(top))))
        others = []
        for folder, names in files_below(top, self._skip):
            slices = set(numbered_pngs(names))
            if slices:
                self._add(folder, self._png_folder)
            for name in names:
                file = os.path.join(folder, name)
                if name not in slices and not self._add_file(file, storage, bar, listing):
                    others.append(file)
        self._close(listing)
        others = [file for file in others if not file.lower().endswith(_BESIDE)]
        if len(self.candidates) + len(self.left_out) == before:
            self.left_out.append(f"{top}: found no scan in it, expected {_FORMATS}")
        elif others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            self.left_out.append(f"{others[0]}{more}: found other files, expected {_FORMATS}")

    def _add_file(self, file: str, storage: Storage, bar: tqdm, listing: DicomListing) -> bool:
        """Add a file; returns whether its format is known."""
        bar.update()
        if is_nifti(file):
            self._add(file, open_nifti)
        elif is_itk(file):
            self._add(file, open_itk)
        elif file.lower().endswith(".zip"):
            self._add(file, lambda archive: self._add_archive(archive, storage, bar))
        else:
            return self._add_dicom(listing, storage, lambda: stored_file(file), file)
        return True

    def _add_archive(self, archive: str, storage: Storage, bar: tqdm) -> None:
        listing = DicomListing(archive, safe_name(stem_of(archive)))
        found = 0
        for member in members_of(storage, archive):
            bar.update()
            found += self._add_dicom(listing, storage, lambda member=member: member, archive)
        if not found:
            raise ValueError(f"{archive}: found no DICOM file in it, expected those of a scan")
        self._close(listing)

    def _add_dicom(
        self, listing: DicomListing, storage: Storage, stored: Callable[[], Stored], file: str
    ) -> bool:
        try:
            return listing.add(storage, stored())
        except (ImportError, OSError) as error:
            self._leave_out_damaged(f"{file}: {one_line(error)}")
            return True

    def _png_folder(self, folder: str) -> PngFolder:
        return PngFolder(folder, spacing=self._spacing, allow_gaps=self._allow_gaps)

    def _add(self, path: str, open_path: Callable[[str], VolumeFile | PngFolder | None]) -> None:
        try:
            found = open_path(path)
        except (ValueError, OSError, ImportError) as error:
            text = one_line(error)
            self._leave_out_damaged(text if text.startswith(path) else f"{path}: {text}")
            return
        if found is not None and found.num_slices < self._min_slices:
            self.left_out.append(
                f"{path}: found {found.num_slices} slices, expected at least {self._min_slices}"
            )
        elif found is not None:
            self._candidate(found, path)

    def _close(self, listing: DicomListing) -> None:
        listed = listing.scans(min_slices=self._min_slices, allow_gaps=self._allow_gaps)
        self.left_out.extend(listed.left_out)
        self.damaged.extend(listed.damaged)
        for found in listed.series:
            self._candidate(found, found.source)

    def _leave_out_damaged(self, line: str) -> None:
        self.left_out.append(line)
        self.damaged.append(line)

    def _candidate(self, found: VolumeFile | PngFolder | DicomSeries, source: str) -> None:
        self.candidates.append(
            ScanCandidate(
                found.name,
                found.format,
                source,
                found.num_slices,
                found.spacing,
                tuple(dict.fromkeys(map(os.path.realpath, found.files))),
                getattr(found, "series_uid", None),
                getattr(found, "study_uid", None),
                found.read,
            )
        )
