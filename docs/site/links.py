"""Links in the Markdown files of the repository."""

import posixpath
import re
from collections.abc import Iterator

#: Of inline links and pictures: text, target, anchor.
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#]*)(#[^)\s]*)?\)")
_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def is_elsewhere(target: str) -> bool:
    """Whether a link leads out of the repository."""
    return "://" in target or target.startswith("mailto:")


def without_code(text: str) -> str:
    """The text without fenced blocks, whose brackets are no links."""
    return _BLOCK.sub("", text)


def linked(text: str, path: str) -> Iterator[tuple[str, str]]:
    """What a Markdown file of the repository links to.

    Args:
        text: of the file.
        path: of the file, from the repository's root.

    Yields:
        Path of a file or folder from the root, and the anchor there, with "#", or "".
    """
    folder = posixpath.dirname(path)
    for _, target, anchor in LINK.findall(without_code(text)):
        if not is_elsewhere(target):
            file = posixpath.normpath(posixpath.join(folder, target)) if target else path
            yield file, anchor


def anchors(text: str) -> set[str]:
    """The anchors of a Markdown file's headings, as GitHub names them."""
    names: set[str] = set()
    for heading in _HEADING.findall(without_code(text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = base = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        count = 0
        while name in names:
            count += 1
            name = f"{base}-{count}"
        names.add(name)
    return {f"#{name}" for name in names}
