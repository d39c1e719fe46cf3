"""Errors that list all problems of a file."""

from collections.abc import Sequence

from ...utils.errors import short_repr

__all__ = ["ProblemsError", "raise_problems", "short_repr"]

_MAX_SHOWN = 20


class ProblemsError(ValueError):
    """The problems of a file or folder.

    Args:
        source: prefix of the message.
        problems: all problems, one line each.
        text: the rest of the message; it lists only the first problems if there are many.
    """

    def __init__(self, source: object, problems: Sequence[str], text: str):
        super().__init__(source, tuple(problems), text)
        self.source, self.problems, self.text = str(source), tuple(problems), text

    def __str__(self) -> str:
        return f"{self.source}: {self.text}"


def raise_problems(source: object, problems: Sequence[str], counted: str | None = None) -> None:
    """Raise one :class:`ProblemsError` for all problems of a file or folder, if there are any.

    Args:
        source: prefix of the message.
        problems: one line each; the first 20 are shown.
        counted: count shown if there are several problems; None for "<n> problems".

    Raises:
        ProblemsError: there are problems.
    """
    if len(problems) == 1:
        raise ProblemsError(source, problems, problems[0])
    if problems:
        counted = counted or f"{len(problems)} problems"
        shown = f", the first {_MAX_SHOWN}" if len(problems) > _MAX_SHOWN else ""
        lines = "".join(f"\n  {text}" for text in problems[:_MAX_SHOWN])
        raise ProblemsError(source, problems, f"{counted}{shown}{lines}")
