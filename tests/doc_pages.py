"""The Markdown pages of the repository, and the commands in their blocks."""

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_PROGRAM = re.compile(
    r"lesion_d2\.(?:tools|experiments)\.(\w+)|datasets/(\w+)\.py|(?:.*/)?(train_net)\.py"
)


def pages() -> dict[str, str]:
    """Path from the root -> text."""
    files = [path for folder in (ROOT, ROOT / "datasets") for path in folder.glob("*.md")]
    for name in ("configs", "docs", "lesion_d2"):
        files += (ROOT / name).rglob("*.md")
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


def blocks(text: str, *languages: str) -> list[str]:
    """Contents of the fenced blocks of a page in these languages ("": of none)."""
    # All blocks are matched, as the end of one in another language looks like a beginning.
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [inspect.cleandoc(block) for language, block in found if language in languages]


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """The page, program and arguments of every command in a block."""
    for page, text in pages().items():
        for block in blocks(text, "sh", ""):
            for line in block.replace("\\\n", " ").splitlines():
                words = _split(line.partition(" #")[0])
                names = (_PROGRAM.fullmatch(word) for word in words)
                for number, found in enumerate(names):
                    if found:
                        yield page, found[found.lastindex], words[number + 1 :]


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # its quotes end in another line
        return line.replace('"', " ").split()
