"""Names of sub-volumes of DeepLesion: ``<patient>_<study>_<series>_<first>-<last>``."""

import re
from typing import NamedTuple

from ...utils.values import MAX_SLICES
from ..formats.problems import short_repr

_NUMBER = "([0-9]{1,9})"  # ASCII digits only
_NAME = re.compile(
    rf"{_NUMBER}_{_NUMBER}_{_NUMBER}_{_NUMBER}-{_NUMBER}(?:\.nii|\.nii\.gz|\.annot)?"
)


class VolumeName(NamedTuple):
    """A range of slices of a series; ``str()`` returns the name, with the digits as written."""

    text: str
    series: str  # <patient>_<study>_<series>
    patient: int
    study: int
    series_number: int
    first: int  # slice numbers as on disk, both included
    last: int

    @classmethod
    def parse(cls, text: str) -> "VolumeName":
        """Parse a name; the suffix of a NIfTI file or of a published key is ignored.

        Raises:
            ValueError: it is not such a name, its first slice is after its last, or it has more
                than 20,000 slices.
        """
        match = _NAME.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[4]) > int(match[5]):
            raise ValueError(
                f"found the volume {short_repr(text)}, expected "
                "<patient>_<study>_<series>_<first>-<last> with first <= last"
            )
        if int(match[5]) - int(match[4]) >= MAX_SLICES:
            raise ValueError(
                f"found the volume {short_repr(text)} of "
                f"{int(match[5]) - int(match[4]) + 1} slices, "
                f"expected {MAX_SLICES} at most"
            )
        series = "_".join(match.group(1, 2, 3))
        numbers = map(int, match.groups())
        return cls(f"{series}_{match[4]}-{match[5]}", series, *numbers)

    def __str__(self) -> str:
        return self.text
