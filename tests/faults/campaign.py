"""Draws inputs of all kinds, tries them and counts."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from .case import GOOD, VERDICTS, Case, Found, Kind
from .kinds import all_kinds
from .sandbox import run_cases


def share_of(kind: Kind, drawn: int, seed: int) -> list[Case]:
    """Known cases of a kind but for heavy ones, and so many drawn ones."""
    known = [case for case in kind.known() if not case.heavy]
    return [*known, *_draw(kind, drawn, seed)]


def draw_cases(kind: Kind, number: int, seed: int) -> list[Case]:
    """Known cases of a kind, and drawn ones until there are so many.

    Args:
        kind: of the cases.
        number: of all; known ones are never left out.
        seed: of the drawn ones, which are the same whatever other kinds there are.
    """
    known = kind.known()
    return [*known, *_draw(kind, number - len(known), seed)]


def _draw(kind: Kind, number: int, seed: int) -> list[Case]:
    rng = np.random.default_rng([seed, *kind.name.encode()])
    return [kind.draw(rng) for _ in range(number)]


def run_campaign(number: int, seed: int, names: Sequence[str] = ()) -> Iterator[Found]:
    """Try so many inputs, as many of each kind.

    Args:
        number: of inputs, at least; all known ones are among them.
        seed: of the drawn ones.
        names: of the kinds; all by default.
    """
    kinds = [kind for kind in all_kinds() if not names or kind.name in names]
    share, left = divmod(number, len(kinds))
    for index, kind in enumerate(kinds):
        cases = draw_cases(kind, share + (index < left), seed)
        yield from run_cases(kind.name, cases)


def count(found: Sequence[Found]) -> dict[str, Counter]:
    """Kind -> verdict -> how often."""
    table: dict[str, Counter] = {}
    for one in found:
        table.setdefault(one.kind, Counter())[one.verdict] += 1
    return table


def bad(found: Sequence[Found]) -> list[Found]:
    """Those that did not end well."""
    return [one for one in found if one.verdict not in GOOD]


def as_markdown(table: dict[str, Counter], verdicts: Sequence[str] = VERDICTS) -> str:
    """A table of kinds and verdicts, with the sums."""
    total = sum(table.values(), Counter())
    lines = [f"| kind | inputs | {' | '.join(verdicts)} |", "|---" * (len(verdicts) + 2) + "|"]
    for name, counts in [*table.items(), ("all", total)]:
        cells = [str(counts[verdict]) for verdict in verdicts]
        lines.append(f"| {name} | {sum(counts.values())} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
