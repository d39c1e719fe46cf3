"""The command lesion-d2: the project's programs by name, and where its configs are.

lesion-d2                       list the programs
lesion-d2 predict --help        same as python -m lesion_d2.tools.predict --help
lesion-d2 train_net ...         same as python train_net.py ..., also in an installation
lesion-d2 configs [WORD ...]    list the config files, or those with all words in their path

It does not import the package, because that takes seconds, and the started program replaces it.
"""

import ast
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

# Folders of the package whose modules are programs.
_ROOMS = ("tools", "experiments")


def main(argv: Sequence[str] | None = None) -> int:
    """List, or start a program; return the exit code.

    Args:
        argv: arguments of the command; by default those of this process.
    """
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # its reader has read enough, as head
        # Python flushes standard output once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _main(arguments: Sequence[str]) -> int:
    package = _package()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(describe(package), flush=True)
        return 0
    name, *rest = arguments
    if name == "configs":
        return _list_configs(package, rest)
    command = commands(package).get(name)
    if command is None:
        close = (
            ", ".join(get_close_matches(name, commands(package), 3)) or "a name listed by lesion-d2"
        )
        print(f"lesion-d2: found {name!r}, expected {close}", file=sys.stderr)
        return 2
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *command, *rest])


def commands(package: Path) -> dict[str, list[str]]:
    """Name -> arguments of Python that start the program.

    Args:
        package: the folder of ``lesion_d2``.
    """
    modules = {
        name: ["-m", f"lesion_d2.{room}.{name}"]
        for room in _ROOMS
        for name in _sources(package / room)
    }
    return modules | {path.stem: [str(path)] for path in _scripts(package)}


def describe(package: Path) -> str:
    """The list of programs, with the first line of each docstring.

    Args:
        package: the folder of ``lesion_d2``.
    """
    train, *scripts = _scripts(package)
    groups = {
        "Training and evaluation": {train.stem: train},
        "Tools": _sources(package / "tools"),
        "Experiments": _sources(package / "experiments"),
        "Generating and converting data": {path.stem: path for path in scripts},
    }
    width = max(map(len, chain(*groups.values())))
    lines = ["usage: lesion-d2 NAME [arguments]", "       lesion-d2 NAME --help"]
    for title, files in groups.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:{width}}  {_first_line(files[name])}" for name in sorted(files)]
    configs = "List the config files, or those whose path has all given words."
    return "\n".join([*lines, "", "Configs:", f"  {'configs':{width}}  {configs}"])


def project_folder(package: Path) -> Path:
    """Where ``train_net.py``, ``configs`` and ``datasets`` are: in a checkout, or as installed.

    Args:
        package: the folder of ``lesion_d2``.
    """
    installed = package / "project"
    return installed if installed.is_dir() else package.parent


def _package() -> Path:
    spec = importlib.util.find_spec("lesion_d2")
    return Path(next(iter(spec.submodule_search_locations)))


def _sources(tools: Path) -> dict[str, Path]:
    """Name -> file that has the tool's docstring."""
    modules = (path for path in tools.glob("*.py") if path.stem[0] != "_" and _is_program(path))
    folders = (path for path in tools.glob("*/__main__.py"))
    return {path.stem: path for path in modules} | {path.parent.name: path for path in folders}


def _scripts(package: Path) -> list[Path]:
    project = project_folder(package)
    return [project / "train_net.py", *sorted((project / "datasets").glob("*.py"))]


def _is_program(file: Path) -> bool:
    return '\nif __name__ == "__main__":\n' in file.read_text(encoding="utf-8")


def _first_line(file: Path) -> str:
    """The first sentence of a file's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def _list_configs(package: Path, words: Sequence[str]) -> int:
    folder = project_folder(package) / "configs"
    files = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.yaml")))
    found = [file for file in files if all(word in file for word in words)]
    print("\n".join([f"{folder}:", *(f"  {file}" for file in found)]), flush=True)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
