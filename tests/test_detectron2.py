"""The import finder, tried in fresh interpreters (this one has detectron2 already)."""

import re
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


def _run(code, *path):
    """Run code where nothing is installed but what ``path`` holds, wherever Detectron2 is here.

    Without ``site`` (-S) there are no site-packages and no editable installs; -E: no PYTHONPATH.
    """
    code = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n{LOAD}{code}"
    return subprocess.run([sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True)


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
    ran = _run(code, tmp_path)
    assert ran.stdout.split("\n")[:2] == ["copy [1]", "detectron2.missing"], ran.stderr


def test_neither_installed_names_both_install_lines(tmp_path):
    ran = _run("finder.ensure_detectron2()", tmp_path)
    assert "ImportError: Detectron2 is not installed" in ran.stderr
    assert "requirements-detectron2.txt" in ran.stderr
    assert "github.com/facebookresearch/detectron2" in ran.stderr


@pytest.fixture
def clone(tmp_path):
    """Its folder is a package to ``import``, one without a file; the package is further in."""
    project = tmp_path / "project"
    _package(project / "detectron2", "detectron2", "SOURCE = __version__ = 'clone'")
    return project


_PRINT = "finder.ensure_detectron2(); import detectron2; print(detectron2.SOURCE)"


@pytest.mark.parametrize("before", ["", "import detectron2; "])
def test_a_clone_beside_the_program_is_no_detectron2(tmp_path, clone, before):
    copy, installed = _fake_copy(tmp_path / "copy"), tmp_path / "installed"
    for path in ((clone, copy), (copy, clone)):
        ran = _run(before + _PRINT, *path)
        assert ran.stdout.split() == ["copy"], ran.stderr
    _package(installed, "detectron2", "SOURCE = 'installed'")
    ran = _run(before + _PRINT, clone, installed, copy)
    assert ran.stdout.split() == ["installed"], ran.stderr


def test_a_clone_that_is_installed_where_it_lies_is_used(tmp_path, clone):
    """By a finder at the end, as ``pip install -e`` makes it."""
    file = clone / "detectron2" / "detectron2" / "__init__.py"
    code = f"""
class Editable:
    def find_spec(name, path=None, target=None):
        if name == "detectron2":
            return importlib.util.spec_from_file_location(name, {str(file)!r})
sys.meta_path.append(Editable)
"""
    ran = _run(code + _PRINT, clone, _fake_copy(tmp_path))
    assert ran.stdout.split() == ["clone"], ran.stderr


def test_a_clone_that_is_not_installed_is_named(clone):
    ran = _run(_PRINT, clone)
    assert "ImportError: Detectron2 is not installed" in ran.stderr
    assert ran.stderr.splitlines()[-1] == f"The folder {clone / 'detectron2'} is not installed."


def test_the_makefile_takes_a_package_alone_for_detectron2(tmp_path, clone):
    makefile = (FINDER.parents[1] / "Makefile").read_text()
    [check] = re.findall(r'python -c "(import detectron2.*?)"', makefile)
    assert _run(check, clone / "detectron2").returncode == 0
    assert "AttributeError" in _run(check, clone).stderr
    assert "ModuleNotFoundError" in _run(check, tmp_path).stderr


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
