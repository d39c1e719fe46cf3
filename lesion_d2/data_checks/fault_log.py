"""What was found, by kind: how often, and the first places."""

import heapq
from collections import Counter
from dataclasses import asdict, dataclass

from ..files import one_line
from .kinds import ERROR, KINDS

#: Places that are kept of a kind.
MAX_PLACES = 20


@dataclass(frozen=True)
class Fault:
    """A kind of fault that was found.

    Args:
        kind: its name in :data:`~lesion_d2.data_checks.kinds.KINDS`.
        severity: "error" or "warning".
        count: how often it was found.
        meaning: what it is, for people.
        places: where, what was found and what was expected, one line each: the first 20.
        images: numbers of the images at these places, where a place is one image.
    """

    kind: str
    severity: str
    count: int
    meaning: str
    places: tuple[str, ...]
    images: tuple[int, ...] = ()

    def to_json(self) -> dict:
        """As ``data_check.json`` has it."""
        values = asdict(self)
        del values["images"]  # numbers within one call
        return {**values, "places": list(self.places)}


class FaultLog:
    """Counts faults, and keeps the first places of each kind, in whatever order they come.

    Args:
        warnings: kinds that are no errors this time.
    """

    def __init__(self, warnings: tuple[str, ...] = ()):
        self._warnings = warnings
        self._counts: Counter[str] = Counter()
        self._heaps: dict[str, list[tuple]] = {}

    def add(self, kind: str, place: str, number: int | None = None) -> None:
        """Note a fault.

        Args:
            kind: its name.
            place: where, what was found, what was expected; becomes one line.
            number: of the image in the order of all; None for what is not of one image.
        """
        self._counts[kind] += 1
        order = self._counts[kind] if number is None else number
        # The smallest orders stay: heapq keeps its least item at the front, so all are negated.
        item = (-order, -self._counts[kind], one_line(place), number)
        heap = self._heaps.setdefault(kind, [])
        if len(heap) < MAX_PLACES:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)

    def rename(self, kind: str, other: str) -> None:
        """Make all faults of a kind faults of another."""
        self._counts[other] = self._counts.pop(kind)
        self._heaps[other] = self._heaps.pop(kind)

    def count(self, kind: str) -> int:
        """How many faults of a kind were noted."""
        return self._counts[kind]

    def faults(self) -> tuple[Fault, ...]:
        """All that were found, errors first, in the order of :data:`KINDS`."""
        found = [self._fault(kind) for kind in KINDS if self._counts[kind]]
        return tuple(sorted(found, key=lambda fault: fault.severity != ERROR))

    def _fault(self, kind: str) -> Fault:
        severity, meaning = KINDS[kind]
        items = sorted(self._heaps[kind], key=lambda item: (-item[0], -item[1]))
        return Fault(
            kind,
            "warning" if kind in self._warnings else severity,
            self._counts[kind],
            meaning,
            tuple(item[2] for item in items),
            tuple(dict.fromkeys(item[3] for item in items if item[3] is not None)),
        )
