"""MkDocs hook: READMEs of the repository are pages, and links between files lead to pages.

Links in Markdown files are relative to the file, as on GitHub. A README keeps its path in the site,
``docs/x.md`` is ``x.md``, and any other file of the repository that a page links to is copied.
"""

import os
import posixpath
import re
from pathlib import Path

from links import LINK, is_elsewhere, linked  # beside this file
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
#: Markdown files outside of docs/ that are pages, beside the READMEs below these folders.
PAGES = ("README.md", "CHANGELOG.md", "datasets/README.md")
PAGES_BELOW = ("configs", "lesion_d2")


def site_path(path: str) -> str:
    """Where a file of the repository is in the site."""
    return path.removeprefix("docs/")


def repository_path(site: str) -> str:
    """The file of the repository that a page of the site is made of."""
    is_outside = site in PAGES or site.split("/")[0] in PAGES_BELOW
    return site if is_outside else f"docs/{site}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the READMEs, and what they and the pages of docs/ link to."""
    readmes = [path for folder in PAGES_BELOW for path in (ROOT / folder).rglob("README.md")]
    pages = [*PAGES, *sorted(path.relative_to(ROOT).as_posix() for path in readmes)]
    present = [f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")]
    targets = [
        target
        for path in (*pages, *present)
        for target, _ in linked((ROOT / path).read_text(encoding="utf-8"), path)
        if (ROOT / target).is_file() and not target.startswith("docs/")
    ]
    for path in dict.fromkeys((*pages, *targets)):
        files.append(File.generated(config, path, abs_src_path=os.fspath(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links within the site."""
    site = page.file.src_uri
    path = repository_path(site)

    def replace(match: re.Match) -> str:
        text, target, anchor = match.groups(default="")
        if not target or is_elsewhere(target):
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if (ROOT / file / "README.md").is_file():
            file = f"{file}/README.md"
        new = posixpath.relpath(site_path(file), posixpath.dirname(site) or ".")
        return f"{text}({new}{anchor})"

    blocks = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(b if b.startswith("```") else LINK.sub(replace, b) for b in blocks)
