"""Runs the GPU tests by pytest."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from lesion_d2.tools.common.checkout import find_in_checkout

_LINES = 15  # of the output, where something fails


def run_tests(device: str, folder: Path, seconds: float) -> dict:
    """Run ``tests/gpu``.

    Args:
        device: of the tests.
        folder: for their files.
        seconds: time limit.

    Returns:
        ``passed``, ``failed`` and ``skipped`` (numbers), ``ok``, ``seconds``, ``skips`` and
        ``failures`` (names and reasons), and ``error`` if pytest itself did not finish.
    """
    root, report = find_in_checkout("tests"), folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", f"--basetemp={folder / 'tests'}", str(root / "gpu")]
    environment = {**os.environ, "LESION_D2_TEST_DEVICE": device}
    error = output = ""
    try:
        done = subprocess.run(
            command,
            cwd=root.parent,
            env=environment,
            timeout=max(1.0, seconds),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        output = done.stdout
        if done.returncode not in (0, 1):  # 1: a test failed
            error = f"pytest ended with status {done.returncode}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {seconds:.0f} s"
    found = read_results(report) if report.exists() else {"passed": 0, "failed": 0, "skipped": 0}
    ok = not error and found["failed"] == 0 and found["passed"] > 0
    tail = [] if ok else output.splitlines()[-_LINES:]
    return {**found, "ok": ok, "error": error, "output": tail}


def read_results(report: Path) -> dict:
    """Parse pytest's report in JUnit XML."""
    counts, skips, failures = {"passed": 0, "failed": 0, "skipped": 0}, {}, {}
    seconds = 0.0
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        seconds += float(case.get("time", 0))
        faults = [part for part in case if part.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if faults:
            counts["failed"] += 1
            failures[name] = (faults[0].get("message") or "").partition("\n")[0]
        elif skipped is not None:
            counts["skipped"] += 1
            skips[name] = skipped.get("message") or ""
        else:
            counts["passed"] += 1
    return {**counts, "seconds": round(seconds, 1), "skips": skips, "failures": failures}
