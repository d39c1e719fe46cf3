"""What the imports at the start of a program cost."""

import ast
import gc
import sys
from pathlib import Path

import lesion_d2
from lesion_d2._programs import uncollected

import pytest

ROOT = Path(lesion_d2.__file__).parents[1]
# Each takes a tenth of a second and more; what needs one imports it in the function that does.
SLOW = {"highdicom", "matplotlib", "nibabel", "pydicom", "requests", "scipy", "skimage"}


def imported_first(file):
    """The modules that a file imports when it is imported, and their names in it."""
    nodes = list(ast.parse(file.read_text()).body)
    nodes += [inner for node in nodes if isinstance(node, ast.With) for inner in node.body]
    package = file.parent.relative_to(ROOT).parts
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_a_training_imports_nothing_slow_that_it_may_not_need():
    found, open_files = {}, [ROOT / "train_net.py", ROOT / "lesion_d2" / "__init__.py"]
    while open_files:
        file = open_files.pop()
        if file in found:
            continue
        found[file] = set(imported_first(file))
        for name in found[file]:
            place = ROOT.joinpath(*name.split("."))
            files = (place.with_suffix(".py"), place / "__init__.py")
            open_files += [f for f in files if f.is_relative_to(ROOT / "lesion_d2") and f.exists()]
    assert len(found) > 150 and ROOT / "lesion_d2" / "engine" / "trainer.py" in found
    slow = {
        f"{file.relative_to(ROOT)}: {name}"
        for file, names in found.items()
        for name in names
        if name.split(".")[0] in SLOW
    }
    assert not slow


@pytest.mark.parametrize("before", [True, False])
def test_garbage_is_looked_for_again_after_the_block(before):
    was_on = gc.isenabled()
    try:
        gc.enable() if before else gc.disable()
        with pytest.raises(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError(sys.argv)
        assert gc.isenabled() == before
    finally:
        gc.enable() if was_on else gc.disable()


@pytest.mark.parametrize(("frozen", "expected"), [(0, ["freeze", "unfreeze"]), (5, [])])
def test_what_is_imported_counts_as_old_where_nobody_has_frozen_anything(
    monkeypatch, frozen, expected
):
    calls = []
    monkeypatch.setattr(gc, "get_freeze_count", lambda: frozen)
    for name in ("freeze", "unfreeze"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append(name))
    with uncollected():
        assert not calls
    assert calls == expected
