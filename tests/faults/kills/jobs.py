"""What is run: each job with what its end is, which no interruption may change."""

import gc
import hashlib
import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_run
import torch
from detectron2.engine import default_argument_parser
from speed_up import draw_no_curves, draw_quickly, read_configs_quickly

from .processes import Program

#: Data sets that jobs read, below the campaign's folder.
DATASETS = "datasets"
#: Of a run that was trained before.
TRAINED = "trained"


@dataclass(frozen=True)
class Job:
    """A command, that is run in a process of its own.

    Args:
        name: in the table.
        run: of the folder of all jobs and the one that it writes to; returns the exit status.
        end: of the latter, its final content: names to comparable values.
        share: of the kills, in the whole campaign of 500.
        again: like ``run``, what goes on after an interruption; by default the same.
        may_share: whether two may be at work in one place, where what they write is the same.
    """

    name: str
    run: Callable[[Path, Path], object]
    end: Callable[[Path], Mapping[str, object]]
    share: int
    again: Callable[[Path, Path], object] | None = None
    may_share: bool = False


# --- training and evaluation ----------------------------------------------------------------------

# With a worker of the loader, that is left behind by a process which is killed alone.
_PLAIN = {"SOLVER__MAX_ITER": 6, "TEST__EVAL_PERIOD": 3, "DATALOADER__NUM_WORKERS": 1}
_MINING = {
    "SOLVER__MAX_ITER": 6,
    "TEST__EVAL_PERIOD": 0,
    "DATASETS__TEST": "()",
    "HARD_NEGATIVES__PERIOD": 2,
}
_TEACHER = {
    "SOLVER__MAX_ITER": 6,
    "TEST__EVAL_PERIOD": 3,
    "MODEL__MEAN_TEACHER__ENABLED": True,
    "MODEL__MEAN_TEACHER__MOMENTUM": 0.5,
    "MODEL__MEAN_TEACHER__SCORE_THRESH": 0.005,
    "MODEL__RETINANET__SCORE_THRESH_TEST": 0.005,
    "MODEL__RESNETS__NORM": "BN",
    "SOLVER__BASE_LR": 0.001,
    "SOLVER__WARMUP_ITERS": 0,
    "SOLVER__LR_SCHEDULER_NAME": "WarmupMultiStepLR",
}


def _train(root: Path, folder: Path, *, options: dict, uldor: bool = False, flags=()) -> int:
    """``train_net.py``."""
    _use(root)
    patch = pytest.MonkeyPatch()
    read_configs_quickly(patch)
    draw_quickly(patch)
    if "--eval-only" not in flags:  # which draws them as everyone does
        draw_no_curves(patch)
    make = tiny_run.uldor_args if uldor else tiny_run.tiny_args
    return _call_train_net(make(folder / "run", *flags, **options))


def _call_train_net(args) -> int:
    """What ``train_net.py`` does when it is called."""
    import runpy
    import sys

    sys.argv = ["train_net.py", *_as_arguments(args)]
    runpy.run_path(os.fspath(tiny_run.PROJECT / "train_net.py"), run_name="__main__")
    return 0


def _as_arguments(args) -> list[str]:
    flags = [f"--{name.replace('_', '-')}" for name in ("resume", "eval_only") if vars(args)[name]]
    arguments = ["--config-file", args.config_file, *flags, *args.opts]
    default_argument_parser().parse_args(arguments)
    return arguments


def _end_of_training(folder: Path) -> dict:
    run = folder / "run"
    final = torch.load(run / "model_final.pth", weights_only=True)
    found = {
        "model_final.pth": _digest({k: final.get(k) for k in ("model", "optimizer", "iteration")}),
        "last_checkpoint": (run / "last_checkpoint").read_text(),
        "metrics.json": _metrics(run / "metrics.json"),
        "left behind": _leftovers(folder),
    }
    for file in sorted(run.glob("inference/*/*.json")):
        found[file.name] = _digest(json.loads(file.read_bytes()))
    if (run / "model_best.pth").is_file():
        best = torch.load(run / "model_best.pth", weights_only=True)
        found["model_best.pth"] = _digest(best["model"])
    return found


def _metrics(file: Path) -> dict[str, float]:
    """The last value of each metric of an evaluation; losses are medians of what a process saw."""
    last: dict[str, float] = {}
    for line in file.read_text().splitlines():
        found = json.loads(line)
        last.update((key, found[key]) for key in found if key.startswith(("bbox/", "segm/")))
    return {key: repr(last[key]) for key in sorted(last)}


def _evaluate(root: Path, folder: Path) -> int:
    weights = root / TRAINED / "run" / "model_final.pth"
    return _train(root, folder, options={"MODEL__WEIGHTS": weights}, flags=("--eval-only",))


def _end_of_evaluation(folder: Path) -> dict:
    files = sorted((folder / "run").glob("inference/*/*.json"))
    found = {file.name: _digest(json.loads(file.read_bytes())) for file in files}
    return {**found, "left behind": _leftovers(folder)}


# --- tools ----------------------------------------------------------------------------------------


def _prepare_masks(root: Path, folder: Path) -> int:
    from lesion_d2.tools.prepare_masks import main

    _use(root)
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--method", "grabcut", "--workers", "1"]
    return main(["--dataset", "phantom_train", *options, "--output", str(folder / "masks.json")])


def _prepare_phantom(root: Path, folder: Path, *, seed: int = 1, more=()) -> int:
    import runpy
    import sys

    options = ["--patients", "4", "--size", "64", "--workers", "1", "--seed", str(seed)]
    sys.argv = ["prepare_phantom.py", "--root", str(folder / "set"), *options, *more]
    script = tiny_run.PROJECT / "datasets" / "prepare_phantom.py"
    runpy.run_path(os.fspath(script), run_name="__main__")
    return 0


def _overwrite_phantom(root: Path, folder: Path) -> int:
    """Of a set that another one replaces."""
    if not folder.exists():  # links are made in no time, and take no room
        copy = folder.with_suffix(".copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root / "old_set", copy, copy_function=os.link)
        copy.rename(folder)
    return _prepare_phantom(root, folder, seed=2, more=["--overwrite"])


def _predict(root: Path, folder: Path) -> int:
    from lesion_d2.tools.predict.__main__ import main

    import tiny_prediction

    inputs = [root / "scans" / name for name in ("a.nii.gz", "b.nii.gz", "dicom")]
    return main(tiny_prediction.make_arguments(root / "predictor", folder / "found", *inputs))


def _import_data(root: Path, folder: Path) -> int:
    from lesion_d2.tools.import_data import main

    _use(root)
    options = ["--workers", "1", "--no-check"]
    source = str(root / DATASETS / "phantom")
    return main(["phantom", source, "--output", str(folder / "mine"), *options])


def _import_again(root: Path, folder: Path) -> int:
    """A data set that stands is whole: it is not imported again."""
    return 0 if (folder / "mine").exists() else _import_data(root, folder)


def _toy_experiments(root: Path, folder: Path) -> int:
    from lesion_d2.experiments.toy_experiments.__main__ import main
    from lesion_d2.tools.common import trainings

    _use(root)
    stand_in = SimpleNamespace(**{**vars(subprocess), "Popen": Program})
    pytest.MonkeyPatch().setattr(trainings, "subprocess", stand_in)
    where = ["--models", "retinanet", "--tasks", "donuts_shape", "--sizes", "50", "--seeds", "1"]
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "INPUT.CT.IMAGE_SIZE", "64"]
    opts += ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.IMS_PER_BATCH", "2"]
    output = ["--output", str(folder / "toys"), "--test-images", "50", "--small"]
    return main([*output, *where, "--", *opts])


def _end_of_toys(folder: Path) -> dict:
    results = sorted(folder.rglob("result.json"))
    found = {}
    for file in results:
        result = json.loads(file.read_bytes())["result"]
        found[file.parent.name] = [result["ap10"], result["iterations"]]
    return {**found, "left behind": _leftovers(folder)}


def _files(folder: Path) -> dict:
    """Every file's bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith((".lock", ".log"))
    }


def _findings(folder: Path) -> dict:
    """Of a prediction, the names of all files, and what tells no times and paths."""
    names = ("findings.json", "findings.csv", "coco_instances_results.json", "labels.nii.gz")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.name in names else None
        for path in files
    }


def _leftovers(folder: Path) -> list[str]:
    """Unfinished files."""
    return sorted(path.name for path in folder.rglob("*") if ".part" in path.name)


def _digest(value: object) -> str:
    """One text for a tree of tensors and numbers."""
    sha = hashlib.sha256()
    _add(sha, value)
    return sha.hexdigest()[:16]


def _add(sha, value: object) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        sha.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key in value:
            sha.update(repr(key).encode())
            _add(sha, value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(sha, item)
    else:
        sha.update(repr(value).encode())


def _use(root: Path) -> None:
    os.environ["DETECTRON2_DATASETS"] = os.fspath(root / DATASETS)


def _training(name: str, share: int, **kwargs) -> Job:
    run = partial(_train, **kwargs)
    return Job(name, run, _end_of_training, share, partial(run, flags=("--resume",)))


JOBS = (
    _training("training", 100, options=_PLAIN),
    _training("ULDor with mining", 60, options=_MINING, uldor=True),
    _training("mean teacher", 60, options=_TEACHER),
    Job("evaluation", _evaluate, _end_of_evaluation, 50),
    Job("prepare_masks", _prepare_masks, _files, 60),
    Job("prepare_phantom", _prepare_phantom, _files, 40),
    Job("prepare_phantom --overwrite", _overwrite_phantom, _files, 40),
    Job("prediction", _predict, _findings, 40, may_share=True),
    Job("import_data", _import_data, _files, 40, _import_again),
    Job("toy_experiments", _toy_experiments, _end_of_toys, 10),
)


# What jobs import late, and each process again.
_LATE = (
    "blosc2",
    "lesion_d2.findings.dicom",
    "lesion_d2.findings.report",
    "lesion_d2.tools.import_data",
    "lesion_d2.tools.predict.__main__",
    "lesion_d2.tools.prepare_masks",
    "lesion_d2.experiments.toy_experiments.__main__",
    "matplotlib.backends.backend_agg",
    "torch.utils.cpp_extension",
    "torch.utils.tensorboard",
)


def preload() -> None:
    """Import what jobs need, for the processes that are forked from this one."""
    for name in _LATE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection would copy this process's pages


def prepare(root: Path) -> None:
    """Write what the jobs read; to be called in a process of its own."""
    from lesion_d2.data.phantoms.phantom import write_phantom
    from lesion_d2.data.toys.images import write_toys
    from lesion_d2.scans.writing import write_dicom, write_nifti

    import tiny_prediction

    write_phantom(root / DATASETS / "phantom", num_patients=8, size=64, workers=1)
    write_phantom(root / "old_set" / "set", num_patients=4, size=64, workers=1)
    write_toys(root / DATASETS / "toys", num_train=50, num_val=2, num_test=50, workers=1)
    (root / "scans").mkdir()
    for seed, name in enumerate("ab"):
        volume = tiny_prediction.make_volume(seed)
        write_nifti(root / "scans" / f"{name}.nii.gz", volume, tiny_prediction.SPACING)
    write_dicom(root / "scans" / "dicom", tiny_prediction.make_volume(2), tiny_prediction.SPACING)
    tiny_prediction.write_run(root / "predictor")
