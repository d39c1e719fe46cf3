"""Makes ``detectron2`` importable, from whichever of its two sources is installed.

Detectron2 is not on the Python package index. An installed Detectron2 (built from its repository)
is always used. Where there is none, ``import detectron2`` resolves to the copy in the EZannot
wheel: every ``detectron2.x`` is then the *same module object* as ``EZannot.detectron2.x``, because
a second copy of a module would mean a second registry and ``isinstance`` checks that fail.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

_COPY = "EZannot.detectron2"
_INSTALL = (
    "Detectron2 is not installed. Install one of:\n"
    "  pip install --no-deps --require-hashes -r requirements-detectron2.txt\n"
    "  pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git\n"
    '(the second one compiles: README, "Install")'
)


class _AliasLoader(importlib.abc.Loader):
    """Loads ``detectron2.x`` by importing ``EZannot.detectron2.x`` and handing out that module."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Import the copy's module and hand it out."""
        module = importlib.import_module(_COPY + spec.name.removeprefix("detectron2"))
        self._own_spec = module.__spec__  # the import system overwrites it with the alias's
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec; there is nothing left to execute."""
        module.__spec__ = self._own_spec


class _AliasFinder(importlib.abc.MetaPathFinder):
    """Finds ``detectron2`` and ``detectron2.*`` in the copy."""

    def find_spec(
        self, fullname: str, path=None, target=None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module of Detectron2 in the copy; None for any other."""
        if fullname != "detectron2" and not fullname.startswith("detectron2."):
            return None
        copy = importlib.util.find_spec(_COPY + fullname.removeprefix("detectron2"))
        if copy is None:
            return None
        is_package = copy.submodule_search_locations is not None
        return importlib.machinery.ModuleSpec(fullname, _AliasLoader(), is_package=is_package)


def _find_installed() -> tuple[object | None, str | None]:
    """The finder in ``sys.meta_path`` of an installed Detectron2, and a folder that hides it.

    To ``import``, any folder ``detectron2`` is a namespace package, such as a clone of the
    repository in the current folder, which has the package itself in a subfolder.
    """
    folder = None
    for finder in sys.meta_path:
        spec = finder.find_spec("detectron2", None) if hasattr(finder, "find_spec") else None
        if spec is not None and spec.origin is not None:
            return finder, folder
        if spec is not None and folder is None:
            folder = next(iter(spec.submodule_search_locations), None)
    return None, folder


def ensure_detectron2() -> None:
    """Make ``import detectron2`` work in this process.

    Raises:
        ImportError: neither Detectron2 nor the copy is installed (names both install lines, and a
            folder ``detectron2`` that is no installation), or an installed Detectron2 fails to
            import for another reason (raised unchanged).
    """
    if getattr(sys.modules.get("detectron2"), "__file__", None):
        return
    finder, folder = _find_installed()
    if folder is not None:
        sys.modules.pop("detectron2", None)  # the folder, if it was imported before
    if finder is not None and folder is not None:
        sys.meta_path.insert(0, finder)  # before the one that finds the folder
    if finder is None:
        if importlib.util.find_spec("EZannot") is None:
            found = f"\nThe folder {folder} is not installed." if folder else ""
            raise ImportError(_INSTALL + found)
        # The first finder, because the copy's packages have their own __path__, from which the path
        # finder would load a submodule a second time, under the alias's name.
        sys.meta_path.insert(0, _AliasFinder())
    importlib.import_module("detectron2")
