"""What an installed package holds."""

from pathlib import Path

import lesion_d2

import pytest

setuptools = pytest.importorskip("setuptools", reason="needs setuptools")

ROOT = Path(lesion_d2.__file__).parents[1]


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a checkout")
def test_files_beside_modules_are_installed(monkeypatch):
    arguments = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    exec(compile(Path("setup.py").read_text(encoding="utf-8"), "setup.py", "exec"), {})
    builder = setuptools.Distribution(arguments).get_command_obj("build_py")
    builder.ensure_finalized()
    installed = {Path(folder, name) for _, folder, _, names in builder.data_files for name in names}
    there = {
        file
        for file in Path("lesion_d2").rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc") and file.name[0] != "."
    }
    assert there and there <= installed
