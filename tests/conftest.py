"""What all tests share.

The project is imported in fixtures: the process that hands tests out to those that run them
(pytest-xdist) reads this file too, needs nothing of it, and the others wait for it.
"""

import gc
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported, here and in the processes that tests start: tiny models are faster
# without compiled losses (fvcore's) and without threads that wait for each other.
os.environ.setdefault("PYTORCH_JIT", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

gc.disable()  # until all is imported, which stays


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it after every test."""
    gc.collect()
    gc.freeze()
    # Else each reading of a data set would count them, which takes as long as to look at them all.
    gc.get_freeze_count = lambda: 1
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _warm_server() -> None:
    import speed_up  # noqa: F401, it makes detectron2 importable
    import warm_processes

    warm_processes.start_server()


@pytest.fixture(scope="session")
def tiny_phantom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of data sets with a tiny ``phantom``; DETECTRON2_DATASETS names it from now on."""
    from lesion_d2.data.phantoms.phantom import write_phantom
    from lesion_d2.utils.files import locked

    from speed_up import read_set_quickly

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the folder of all processes: one of them writes it
        shared = shared.parent
    with locked(shared / "phantom.lock", waits=True):
        write_phantom(shared / "phantom", num_patients=8, size=64, workers=1)
    root = tmp_path_factory.mktemp("datasets")
    shutil.copytree(shared / "phantom", root / "phantom", copy_function=os.link)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", os.fspath(root))
        read_set_quickly(patch, root / "phantom")
        yield root


@pytest.fixture(scope="session", autouse=True)
def _quick_runs() -> Iterator[None]:
    from speed_up import read_configs_quickly, write_quickly

    with pytest.MonkeyPatch.context() as patch:
        read_configs_quickly(patch)
        write_quickly(patch)
        yield


@pytest.fixture(scope="module")
def no_curves() -> Iterator[None]:
    """Evaluations without their pictures, see :mod:`speed_up`."""
    from speed_up import draw_no_curves

    with pytest.MonkeyPatch.context() as patch:
        draw_no_curves(patch)
        yield


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures of ``visualize``, see :mod:`speed_up`."""
    from speed_up import draw_small

    draw_small(monkeypatch)


@pytest.fixture(scope="module")
def quick_weights() -> Iterator[None]:
    """First weights in a fraction of the time, see :mod:`speed_up`."""
    from speed_up import draw_quickly

    with pytest.MonkeyPatch.context() as patch:
        draw_quickly(patch)
        yield


@pytest.fixture
def warm_spawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test starts by "spawn" has the project imported, see :mod:`warm_processes`."""
    import warm_processes

    get_context = multiprocessing.get_context
    monkeypatch.setattr(
        multiprocessing,
        "get_context",
        lambda method: get_context(warm_processes.METHOD if method == "spawn" else method),
    )


@pytest.fixture
def escaped() -> Iterator[Callable]:
    """What signals do where the program does not handle them."""

    def escape(*_: object) -> None:
        raise AssertionError("a signal was not handled")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, escape) for number in numbers}
    yield escape
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _restore_loggers() -> Iterator[None]:
    """Undo Detectron2's ``setup_logger``, so that the next test's caplog works as if alone."""
    import detectron2

    names = (detectron2.__name__, "detectron2", "fvcore", "lesion_d2")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (propagate, level) in zip(loggers, before, strict=True):
        logger.propagate = propagate
        if logger.level != level:  # it makes all loggers look for their levels again
            logger.setLevel(level)
        logger.handlers.clear()
