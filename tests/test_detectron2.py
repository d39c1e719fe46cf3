"""The import finder, tried in fresh interpreters (this one has detectron2 already)."""

import subprocess
import sys
from pathlib import Path

import pytest

FINDER = Path(__file__).parents[1] / "lesion_d2" / "_detectron2.py"
LOAD = f"""
import importlib, importlib.util, sys
spec = importlib.util.spec_from_file_location("finder", {str(FINDER)!r})
finder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(finder)
"""


# An installed Detectron2, or copy, could only come from the site-packages.
HIDE = "sys.path = [p for p in sys.path if 'site-packages' not in p]\n"


def _run(code, *path):
    code = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n{LOAD}{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def _package(root, name, text=""):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(text)
    return folder


def _fake_copy(root):
    """A copy that says what it is, with a submodule that keeps state."""
    _package(root, "EZannot")
    detectron2 = _package(root / "EZannot", "detectron2", "SOURCE = 'copy'")
    (detectron2 / "registry.py").write_text("from . import SOURCE\nENTRIES = []")
    return root


def test_an_installed_detectron2_is_used(tmp_path):
    _fake_copy(tmp_path)
    _package(tmp_path, "detectron2", "SOURCE = 'installed'")
    ran = _run(
        "finder.ensure_detectron2(); import detectron2; print(detectron2.SOURCE, 'EZannot' in "
        "sys.modules)",
        tmp_path,
    )
    assert ran.stdout.split() == ["installed", "False"], ran.stderr


def test_the_copys_modules_are_the_same_objects(tmp_path):
    _fake_copy(tmp_path)
    code = """
finder.ensure_detectron2()
import detectron2, detectron2.registry, EZannot.detectron2.registry as own
from detectron2 import registry
assert registry is own is sys.modules["detectron2.registry"]
assert own.__spec__.name == own.__name__ == "EZannot.detectron2.registry"
registry.ENTRIES.append(1)
print(detectron2.SOURCE, own.ENTRIES)
try:
    import detectron2.missing
except ModuleNotFoundError as error:
    print(error.name)
"""
    ran = _run(HIDE + code, tmp_path)
    assert ran.stdout.split("\n")[:2] == ["copy [1]", "detectron2.missing"], ran.stderr


def test_neither_installed_names_both_install_lines(tmp_path):
    ran = _run(HIDE + "finder.ensure_detectron2()", tmp_path)
    assert "ImportError: Detectron2 is not installed" in ran.stderr
    assert "requirements-detectron2.txt" in ran.stderr
    assert "github.com/facebookresearch/detectron2" in ran.stderr


def test_a_broken_installation_is_not_hidden(tmp_path):
    _fake_copy(tmp_path)
    _package(tmp_path, "detectron2", "import a_package_that_is_not_there")
    ran = _run("finder.ensure_detectron2()", tmp_path)
    assert "No module named 'a_package_that_is_not_there'" in ran.stderr


def test_registries_and_classes_are_shared():
    import lesion_d2  # noqa: F401

    from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet

    assert issubclass(META_ARCH_REGISTRY.get("RetinaUNet"), RetinaNet)
    aliases = [name for name in sys.modules if name.startswith("detectron2.")]
    source = sys.modules["detectron2"].__name__
    if source == "detectron2":
        pytest.skip("Detectron2 itself is installed: there are no aliases")
    for name in aliases:
        assert sys.modules[name] is sys.modules[source + name.removeprefix("detectron2")], name
