"""Scans of :mod:`lesion_d2.scans` as imported volumes."""

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
    """A scan and its lesions as an import takes them.

    Args:
        scan: read from any format.
        name, patient: of the volume.
        lesions: in pixels and slices of the scan.
        left_out: what of the case was left out, a line each; the scan's own messages follow.
        window: HU that show the lesions well, of the volume.
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
