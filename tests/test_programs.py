"""How the project's programs begin: Ctrl-C in their first imports, seeds and help."""

import argparse
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from doc_pages import DOCS, commands

import lesion_d2_cli

ROOT = Path(__file__).parents[1]
# In place of Detectron2, the first package that programs import: Ctrl-C comes meanwhile.
INTERRUPTED = """
import os, signal
print("begun", flush=True)
os.kill(os.getpid(), signal.SIGINT)
signal.pause()
"""


def run(folder: Path, *command: str, text: str = INTERRUPTED) -> subprocess.CompletedProcess:
    (folder / "detectron2").mkdir()
    (folder / "detectron2" / "__init__.py").write_text(text)
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        # A shell that began the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    "command",
    [
        (f"{ROOT / 'train_net.py'}",),
        ("-m", "lesion_d2.tools.predict", "--help"),
        (f"{ROOT / 'datasets' / 'prepare_toys.py'}",),
    ],
)
def test_ctrl_c_in_the_first_imports_is_no_traceback(tmp_path, command):
    ended = run(tmp_path, *command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "begun\n", "")


def test_programs_of_others_keep_their_handlers(tmp_path):
    ended = run(tmp_path, "-c", "import lesion_d2")
    assert "KeyboardInterrupt" in ended.stderr


def test_an_ignored_signal_stays_ignored(tmp_path):
    (tmp_path / "a.py").write_text(
        "import os, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "sys.argv = ['-m']\n"
        "from lesion_d2 import data\n"
    )
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nos._exit(7)\n"
    assert run(tmp_path, str(tmp_path / "a.py"), text=text).returncode == 7


def parser_of(name: str):
    """What parses a command line: of a module of the package, or of a script in ``datasets/``."""
    if name.startswith("lesion_d2"):
        return importlib.import_module(name).get_parser().parse_args
    spec = importlib.util.spec_from_file_location(name, ROOT / "datasets" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, "parse_args", module.main)


@pytest.mark.parametrize("value", ["-1", str(2**32), "x"])
@pytest.mark.parametrize(
    "name, options",
    [
        ("lesion_d2.tools.cross_validate.__main__", ["--split-seed"]),
        ("lesion_d2.tools.import_data", ["coco", "a", "--seed"]),
        ("lesion_d2.tools.optimize_anchors", ["--seed"]),
        ("lesion_d2.tools.split_data", ["--seed"]),
        ("lesion_d2.tools.visualize.__main__", ["dataset", "--seed"]),
        ("lesion_d2.tools.visualize.__main__", ["negatives", "--hidden-seed"]),
        ("prepare_phantom", ["--seed"]),
        ("prepare_phantom_scan", ["--seed"]),
        ("prepare_inserted", ["source", "--output", "mine", "--seed"]),
        ("prepare_toys", ["--seed"]),
    ],
)
def test_seeds_that_are_none(name, options, value, capsys):
    with pytest.raises(SystemExit) as ended:
        parser_of(name)([*options, value])
    last = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and f"argument {options[-1]}: " in last and value in last


class Captured(Exception):
    """Has the parser of a program."""


def captured_parser(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser with which a program's ``main`` begins."""

    def capture(parser, *_, **__):
        raise Captured(parser)

    for method in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, capture)
    *_, where = lesion_d2_cli.commands(ROOT / "lesion_d2")[name]
    if where.startswith("lesion_d2."):
        has_folder = (ROOT / where.replace(".", "/")).is_dir()
        main = importlib.import_module(f"{where}.__main__" if has_folder else where).main
    else:
        spec = importlib.util.spec_from_file_location(name, where)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        main = module.main
    with pytest.raises(Captured) as captured:
        main([])
    return captured.value.args[0]


def parsers_below(parser: argparse.ArgumentParser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers_below(child)


@pytest.mark.parametrize(
    "name", sorted(lesion_d2_cli.commands(ROOT / "lesion_d2").keys() - {"train_net"})
)
def test_help_says_what_each_argument_is_in_plain_text(name, monkeypatch):
    for parser in parsers_below(captured_parser(name, monkeypatch)):
        lacking = [
            action.dest
            for action in parser._actions
            if not action.help and not isinstance(action, argparse._SubParsersAction)
        ]
        assert not lacking, parser.prog
        text = parser.format_help()
        assert parser.description and parser.description.strip() in text
        assert "``" not in text and ":mod:" not in text and ":func:" not in text


def the_one_for(parser: argparse.ArgumentParser, arguments: Sequence[str]):
    """The parser of the subcommand that the arguments begin with, if there are any."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            # A page may say FORMAT in place of one.
            return action.choices.get(arguments[0], next(iter(action.choices.values())))
    return parser


@pytest.mark.skipif(not DOCS.is_dir(), reason="needs a checkout")
@pytest.mark.parametrize("name", sorted({program for _, program, _ in commands()}))
def test_options_of_commands_in_the_docs_exist(name, monkeypatch):
    if name == "train_net":
        from detectron2.engine import default_argument_parser

        parser = default_argument_parser()
    else:
        parser = captured_parser(name, monkeypatch)
    for page, program, arguments in commands():
        if program == name:
            options = {a.partition("=")[0] for a in arguments if a.startswith("--")}
            known = the_one_for(parser, arguments)._option_string_actions.keys()
            assert options <= known | {"--"}, page
