"""Errors that tell of all that is wrong in a file."""

from collections.abc import Sequence

from ...utils.errors import short_repr

__all__ = ["ProblemsError", "raise_problems", "short_repr"]

_MAX_SHOWN = 20


class ProblemsError(ValueError):
    """What is wrong in a file or folder.

    Args:
        source: what begins the message.
        problems: all of them, one line each.
        text: the rest of the message; of many problems it has the first ones.
    """

    def __init__(self, source: object, problems: Sequence[str], text: str):
        super().__init__(source, tuple(problems), text)
        self.source, self.problems, self.text = str(source), tuple(problems), text

    def __str__(self) -> str:
        return f"{self.source}: {self.text}"


def raise_problems(source: object, problems: Sequence[str], counted: str | None = None) -> None:
    """Raise one :class:`ProblemsError` with all that is wrong in a file or folder, if anything is.

    Args:
        source: what begins the message.
        problems: one line each; the first 20 are shown.
        counted: how a message of several counts them; None for "<n> problems".

    Raises:
        ProblemsError: there is a problem.
    """
    if len(problems) == 1:
        raise ProblemsError(source, problems, problems[0])
    if problems:
        counted = counted or f"{len(problems)} problems"
        shown = f", the first {_MAX_SHOWN}" if len(problems) > _MAX_SHOWN else ""
        lines = "".join(f"\n  {text}" for text in problems[:_MAX_SHOWN])
        raise ProblemsError(source, problems, f"{counted}{shown}{lines}")
