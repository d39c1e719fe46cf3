"""The Markdown files of the repository, whose links ``make docs`` checks as pages."""

import importlib.util
from pathlib import Path

import lesion_d2

import pytest

ROOT = Path(lesion_d2.__file__).parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="needs a checkout")


@pytest.fixture(scope="module")
def links():
    spec = importlib.util.spec_from_file_location("docs_links", DOCS / "site" / "links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pages():
    folders = (ROOT, ROOT / "datasets")
    shallow = [path for folder in folders for path in folder.glob("*.md")]
    deep = [
        path for name in ("configs", "docs", "lesion_d2") for path in (ROOT / name).rglob("*.md")
    ]
    return [path.relative_to(ROOT).as_posix() for path in (*shallow, *deep)]


def test_every_link_leads_to_a_file_and_its_anchor_to_a_heading(links):
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in _pages()}
    broken = []
    for path, text in texts.items():
        for target, anchor in links.linked(text, path):
            page = f"{target}/README.md" if (ROOT / target).is_dir() else target
            known = links.anchors(texts[page]) if page in texts else set()
            if not (ROOT / page).is_file() or (anchor and anchor not in known):
                broken.append(f"{path}: {target}{anchor}")
    assert broken == []


def test_links_and_anchors_are_found_as_github_finds_them(links):
    text = (
        "# A, `b` & c-d\n[x](../y.md#z) ![p](q.png) [w](https://a.b/c)\n```\n[n](n)\n```\n# A\n# A"
    )
    assert list(links.linked(text, "docs/a.md")) == [("y.md", "#z"), ("docs/q.png", "")]
    assert links.anchors(text) == {"#a-b--c-d", "#a", "#a-1"}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
