"""The command lesion-d2, in a checkout and as an installation has it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lesion_d2
from lesion_d2._programs import project_folder

import pytest

import lesion_d2_cli

PACKAGE = Path(lesion_d2.__file__).parent
ROOT = PACKAGE.parent


@pytest.fixture
def started(monkeypatch):
    """Command lines of programs that took the place of the process."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: calls.append(arguments))
    return calls


def test_every_tool_is_listed_with_a_sentence(capsys):
    # Given all modules of lesion_d2.tools and lesion_d2.experiments that can be started
    files = [f for room in ("tools", "experiments") for f in (PACKAGE / room).glob("*.py")]
    modules = {f.stem for f in files if "__main__" in f.read_text()}
    for room in ("tools", "experiments"):
        modules |= {f.parent.name for f in (PACKAGE / room).glob("*/__main__.py")}
    # When they are listed
    assert lesion_d2_cli.main([]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    # Then each is there, and says something
    listed = dict(line.split(maxsplit=1) for line in lines if "--help" not in line)
    assert modules - {"__main__"} <= listed.keys()
    assert {"predict", "benchmark"} <= modules
    assert {"configs", "train_net", "prepare_phantom"} <= listed.keys()
    assert all(text.endswith(".") for text in listed.values())


def test_a_tool_takes_the_place_of_the_command(started):
    lesion_d2_cli.main(["predict", "--help"])
    assert started == [[sys.executable, "-m", "lesion_d2.tools.predict", "--help"]]


def test_an_experiment_is_started_like_a_tool(started):
    lesion_d2_cli.main(["benchmark"])
    assert started == [[sys.executable, "-m", "lesion_d2.experiments.benchmark"]]


def test_scripts_of_the_root_are_started_by_name(started):
    lesion_d2_cli.main(["train_net", "--resume"])
    assert started == [[sys.executable, str(ROOT / "train_net.py"), "--resume"]]


def test_an_unknown_name_is_one_line_with_what_it_may_mean(started, capsys):
    assert lesion_d2_cli.main(["predcit"]) == 2
    assert capsys.readouterr().err == "lesion-d2: found 'predcit', expected predict\n"
    assert lesion_d2_cli.main(["../x"]) == 2
    assert not started


def test_configs_are_found_by_words(capsys):
    assert lesion_d2_cli.main(["configs", "improved", "dense"]) == 0
    folder, *files = capsys.readouterr().out.split()
    assert folder == f"{ROOT / 'configs'}:"
    assert files == ["improved_retinanet/dense.yaml", "improved_retinanet/dense_phantom.yaml"]
    assert lesion_d2_cli.main(["configs", "none of them"]) == 1


@pytest.mark.parametrize("arguments", [(), ("configs",)])
def test_a_reader_that_has_read_enough_ends_the_list(arguments):
    # Given a pipe whose reader has closed it, as head does
    reader, writer = os.pipe()
    os.close(reader)
    # When a list is written to it
    program = [sys.executable, "-S", lesion_d2_cli.__file__, *arguments]
    done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, timeout=60)
    os.close(writer)
    # Then the program ends as others do, without a message
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_installation_has_the_project_below_the_package(tmp_path):
    assert project_folder(tmp_path) == lesion_d2_cli.project_folder(tmp_path) == tmp_path.parent
    (tmp_path / "project").mkdir()
    assert project_folder(tmp_path) == lesion_d2_cli.project_folder(tmp_path)
    assert project_folder(tmp_path) == tmp_path / "project"


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a checkout")
def test_what_is_built_finds_its_configs_from_another_folder(tmp_path):
    # Given what pip install . would install
    pytest.importorskip("setuptools", reason="needs setuptools")
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    # When it is asked for configs, elsewhere
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    command = [sys.executable, "-m", "lesion_d2_cli", "configs"]
    answer = subprocess.run(
        command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    # Then all of them are there, with the programs and READMEs beside them
    folder, *files = answer.stdout.split()
    project = tmp_path / "lib" / "lesion_d2" / "project"
    assert folder == f"{project / 'configs'}:"
    expected = {f.relative_to(ROOT / "configs") for f in (ROOT / "configs").rglob("*.yaml")}
    assert {Path(file) for file in files} == expected
    assert (project / "train_net.py").read_bytes() == (ROOT / "train_net.py").read_bytes()
    assert (project / "datasets" / "prepare_phantom.py").is_file()
    assert (project / "configs" / "improved_retinanet" / "README.md").is_file()
