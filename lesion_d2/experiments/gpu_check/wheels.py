"""Download wheels for the GPU check, for a machine without a network that has torch.

python -m lesion_d2.experiments.gpu_check.wheels --output wheels --python 3.12 \\
    --has torch torchvision

Downloads the versions that are installed here, as wheels for the Python of that machine, on Linux
and x86-64. Packages that it has (--has), and dependencies of only these, are left out. On that
machine, "make gpu-check" installs the folder in addition to Python's packages.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path

from lesion_d2.tools.common.checkout import find_in_checkout
from lesion_d2.utils.errors import InputError, run_program

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tqdm import tqdm

_TESTS = ("pytest",)
# Versions of the C library in wheels' manylinux tags.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64")
_PLATFORMS += ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")


def needed(
    names: Iterable[str],
    has: Iterable[str],
    requires: Callable[[str], Iterable[str]] = lambda name: metadata.requires(name) or (),
) -> list[str]:
    """Packages and all of their dependencies.

    Args:
        names: of packages that are installed here.
        has: names of packages that the other machine has, with their dependencies.
        requires: returns the dependencies of a package, from its metadata.

    Returns:
        Normalized names in alphabetical order, without this project.
    """
    there, found = set(map(canonicalize_name, has)), set()
    todo = [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found or name in there:
            continue
        found.add(name)
        for line in requires(name):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(canonicalize_name(requirement.name))
    return sorted(found - {canonicalize_name("lesion_d2")})


def download(name: str, folder: Path, python: str) -> str:
    """Download a wheel of the version that is installed here; build it if there is none.

    Returns:
        The error, if any.
    """
    requirement = f"{name}=={metadata.version(name)}"
    common = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    fetch = ["download", "--no-deps", "--only-binary=:all:", "--python-version", python]
    fetch += [part for platform in _PLATFORMS for part in ("--platform", platform)]
    if _run([*common, *fetch, "-d", str(folder), requirement]) == "":
        return ""
    with tempfile.TemporaryDirectory() as built:
        error = _run([*common, "wheel", "--no-deps", "-w", built, requirement])
        for wheel in Path(built).glob("*.whl"):
            if not wheel.name.endswith("-none-any.whl"):
                return f"{requirement}: found no wheel for Python {python}, and built {wheel.name}"
            (folder / wheel.name).write_bytes(wheel.read_bytes())
            return ""
    return f"{requirement}: {error}"


def _run(command: Sequence[str]) -> str:
    """Run a program; returns the last line of its errors, or "" on success."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


def main(argv: Sequence[str] | None = None) -> int:
    """Download; returns 1 if something is missing."""
    parser = argparse.ArgumentParser(
        prog="lesion_d2.experiments.gpu_check.wheels", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--output", type=Path, default=Path("wheels"), metavar="FOLDER")
    add("--python", default="3.12", help="version of Python on the machine with a GPU (3.12)")
    add("--has", nargs="*", default=["torch", "torchvision"], metavar="PACKAGE")
    args = parser.parse_args(argv)
    return run_program(lambda: run(args), "gpu_check.wheels")


def run(args: argparse.Namespace) -> None:
    """Fill the folder.

    Raises:
        InputError: it is not empty, or a package is not available.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    if any(args.output.iterdir()):
        raise InputError(f"--output: found files in {args.output}, expected an empty folder")
    names = needed(["lesion_d2", *_TESTS], args.has)
    problems = [download(name, args.output, args.python) for name in tqdm(names, unit="package")]
    copy = find_in_checkout("requirements-detectron2.txt")
    command = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "--require-hashes"]
    problems.append(_run([*command, "-d", str(args.output), "-r", str(copy)]))
    problems = list(filter(None, problems))
    if problems:
        raise InputError("\n".join(problems))
    size = sum(file.stat().st_size for file in args.output.iterdir()) / 2**20
    print(f"{args.output}: {len(names) + 1} packages, {size:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
