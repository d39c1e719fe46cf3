"""Conversion of scans to imported volumes."""

from collections.abc import Sequence

from ..data.volume_set.form import Lesion, Volume
from ..scans import Scan
from .case import ImportedVolume


def imported_scan(
    scan: Scan,
    name: str,
    patient: str,
    lesions: Sequence[Lesion],
    left_out: Sequence[str] = (),
    window: tuple[float, float] | None = None,
) -> ImportedVolume:
    """Convert a scan and its lesions to an :class:`ImportedVolume`.

    Args:
        scan: a scan of any format.
        name, patient: name and patient of the volume.
        lesions: lesions, in pixels and slices of the scan.
        left_out: one line for each item that was left out; the scan's messages are appended.
        window: display window of the volume, (low, high) in HU.
    """
    volume = Volume(
        name=name,
        patient=patient,
        image=f"images/{name}.b2nd",
        shape=tuple(map(int, scan.volume.shape)),
        spacing=tuple(map(float, scan.spacing)),
        origin=tuple(map(float, scan.origin)),
        direction=tuple(map(float, scan.direction.ravel())),
        lesions=tuple(lesions),
        window=window,
    )
    told = (*left_out, *(f"{name}: {message}" for message in scan.messages))
    return ImportedVolume(scan.volume, volume, told)
