"""The Markdown files of the repository, whose links ``make docs`` checks as pages."""

import ast
import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from itertools import pairwise

from lesion_d2.config import get_lesion_config
from lesion_d2.config.epochs import EPOCH_KEYS
from lesion_d2.tools.visualize.__main__ import _jobs

import pytest
from config_values import flat
from doc_pages import DOCS, ROOT, blocks, commands, pages

import lesion_d2_cli

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="needs a checkout")


@pytest.fixture(scope="module")
def links():
    spec = importlib.util.spec_from_file_location("docs_links", DOCS / "site" / "links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_link_leads_to_a_file_and_its_anchor_to_a_heading(links):
    texts = pages()
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


def _python():
    """Name -> Python of the notebook and of blocks in the pages."""
    for path, text in pages().items():
        yield from ((path, block) for block in blocks(text, "python"))
    for path in DOCS.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        yield path.name, "\n".join(code)


def test_what_examples_import_of_the_package_is_there():
    missing, seen = [], set()
    for path, text in _python():
        found = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom))
        for node in (node for node in found if node.module.split(".")[0] == "lesion_d2"):
            module = importlib.import_module(node.module)
            names = {alias.name for alias in node.names}
            seen |= names
            missing += [f"{path}: {node.module}.{n}" for n in names if not hasattr(module, n)]
    assert missing == []
    assert {"froc_curve", "LesionVisualizer", "record_attention"} <= seen


def test_config_files_of_commands_exist():
    missing, seen = [], 0
    for page, program, arguments in commands():
        for option, value in pairwise(arguments):
            if option == "--config-file" and value.startswith("configs/") and "$" not in value:
                seen += 1
                missing += [f"{page}: {program} {value}"] * (not (ROOT / value).is_file())
    assert missing == []
    assert seen > 50


def test_keys_that_pages_name_exist():
    keys = flat(get_lesion_config())
    keys = {key.rsplit(".", i)[0] for key in keys for i in range(3)}  # sections, too
    sections = "|".join({key.split(".")[0] for key in keys})
    named = re.compile(rf"(?<![\w.])(?:{sections})\.[A-Z0-9_.]*[A-Z0-9](?![\w*])")
    unknown, seen = [], set()
    for page, text in pages().items():
        if page != "CHANGELOG.md":  # it has old names
            found = set(named.findall(text))
            seen |= found
            unknown += [f"{page}: {key}" for key in found - keys]
    assert unknown == []
    assert {"SOLVER.MAX_EPOCHS", "INPUT.CT.HU_WINDOW"} <= seen


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_the_page_of_tools_lists_all_programs():
    text = (DOCS / "tools.md").read_text(encoding="utf-8")
    programs = lesion_d2_cli.commands(ROOT / "lesion_d2").keys() | _jobs().keys()
    listed = set(re.findall(r"`(?:visualize )?(\w+)`", text))
    assert programs - {"train_net", "visualize"} - listed == set()


def test_the_page_of_training_lists_all_keys_in_epochs():
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    rows = [f"| `{part}.{a}` | `{part}.{b}` |" for part, a, b, _ in EPOCH_KEYS]
    assert [row for row in rows if row not in text] == []


def _patterns_of(cell: str) -> Iterator[str]:
    """Regular expressions of the paths that a cell lists, such as ``uldor/{a,b}.yaml``."""
    folder = ""
    for text in re.sub(r"\[(`[^`]*`)\]\([^)]*\)", r"\1", cell).replace("`", "").split(", "):
        if "/" in text:
            folder = text.rpartition("/")[0] + "/"
        else:
            text = folder + text
        text = re.escape(text).replace(r"\.\.\.", r"\w+?")
        text = re.sub(r"<[^>]*>", r"[a-z_]+", text)
        yield re.sub(r"\\{([^}]*)\\}", lambda found: f"(?:{found[1].replace(',', '|')})", text)


def test_every_config_is_in_the_table_of_configs_and_no_other():
    table = (DOCS / "which_config.md").read_text(encoding="utf-8").split("| Config | Data |")[1]
    patterns = [
        pattern
        for row in table.splitlines()[2:]
        for pattern in _patterns_of(row.split(" | ")[0][2:])
    ]
    configs = ROOT / "configs"
    files = {
        path.relative_to(configs).as_posix()
        for path in configs.rglob("*.yaml")
        if path.parent.name != "parts" and not path.name.startswith("Base-")
    }
    matches = {p: {file for file in files if re.fullmatch(p, file)} for p in patterns}
    assert [p for p, found in matches.items() if not found] == []
    assert files - set().union(*matches.values()) == set()
