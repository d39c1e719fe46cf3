"""Launches the processes of a run, or joins those of torchrun or SLURM."""

import argparse
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT, launch
from detectron2.utils import comm

from .defaults import check_shared_device, checked_config, fit_device, prepare_launch
from .input_errors import InputError

_ENVIRONMENT = "env://"
_FIRST_PORT, _NUM_PORTS = 20_000, 20_000  # below the ephemeral ports


@dataclass(frozen=True)
class Place:
    """The rank of this process, and the address of the first process.

    Attributes:
        rank, world_size: among all processes.
        local_rank, local_size: among those on this machine; equal on all machines.
        address, port: address of the first process.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    port: int


def launch_run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Start ``main(args)`` in all processes of a run, and wait for them.

    If torchrun has started this program, or with ``--dist-url env://`` torchrun or SLURM's srun,
    this process joins the others.

    Args:
        main: what each process does; it ends with ``finish_run``.
        args: arguments of Detectron2's ``default_argument_parser``.

    Raises:
        InputError: see :func:`~lesion_d2.engine.prepare_launch` and :func:`find_place`.
    """
    place = find_place(args.dist_url, os.environ)
    if place is None:
        prepare_launch(args)
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
        return
    if args.num_gpus * args.num_machines > 1:
        raise InputError(
            f"found --num-gpus {args.num_gpus} and --num-machines {args.num_machines} in one of "
            f"{place.world_size} processes that a launcher started, expected neither"
        )
    if place.world_size > 1:
        cfg = checked_config(args)
        fit_device(cfg)
        _join(place, cfg.MODEL.DEVICE)
    main(args)


def find_place(dist_url: str, environ: Mapping[str, str]) -> Place | None:
    """Read the environment variables of torchrun or srun.

    Args:
        dist_url: ``--dist-url``.
        environ: environment of this process.

    Returns:
        None if this process has to start the others: ``dist_url`` is not ``env://``, and it was not
            started by torchrun.

    Raises:
        InputError: a variable is missing or invalid.
    """
    if dist_url != _ENVIRONMENT and "TORCHELASTIC_RUN_ID" not in environ:
        return None
    values = dict(environ)
    if "RANK" not in environ and "SLURM_PROCID" in environ:
        values |= _of_slurm(environ)
    address = values.get("MASTER_ADDR")
    if not address:
        raise InputError(
            "--dist-url env://: found no MASTER_ADDR, expected to be started by torchrun or srun"
        )
    values = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **values}
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    rank, size, local_rank, local_size, port = (_number(values, name) for name in names)
    if not (rank < size and local_rank < local_size and size % local_size == 0):
        raise InputError(
            f"--dist-url env://: found process {rank} of {size}, and on its machine {local_rank} "
            f"of {local_size}; expected the same number of processes on all machines"
        )
    return Place(rank, size, local_rank, local_size, address, port)


def _number(values: Mapping[str, str], name: str) -> int:
    text = values.get(name)
    if text is None or not re.fullmatch("[0-9]{1,9}", text):
        raise InputError(f"--dist-url env://: found {name} {text!r}, expected a number")
    return int(text)


def _of_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """Convert srun's variables to torchrun's."""
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    equal = re.fullmatch(r"([0-9]+)(\(x[0-9]+\))?", tasks)
    if equal is None:
        raise InputError(
            f"--dist-url env://: found SLURM_STEP_TASKS_PER_NODE {tasks}, expected the same number "
            "on all nodes: use srun --ntasks-per-node"
        )
    job = environ.get("SLURM_JOB_ID", "0")
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "")),
        "LOCAL_RANK": environ.get("SLURM_LOCALID", ""),
        "LOCAL_WORLD_SIZE": equal[1],
        "MASTER_ADDR": environ.get("MASTER_ADDR")
        or _first_host(environ.get("SLURM_STEP_NODELIST", "")),
        "MASTER_PORT": environ.get("MASTER_PORT")
        or str(_FIRST_PORT + (int(job) if job.isdecimal() else 0) % _NUM_PORTS),
    }


def _first_host(nodes: str) -> str:
    """The first node of a SLURM node list, such as ``gpu[07-09,12],big1``."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", first)


def _join(place: Place, device: str) -> None:
    """Connect to the other processes, as in Detectron2's ``launch``.

    For a run on the CPU, GPUs are hidden, as in :func:`prepare_processes`.

    Raises:
        InputError: there is no GPU for this process, or MODEL.DEVICE is a single GPU.
    """
    on_gpu = device.startswith("cuda")
    if not on_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        check_shared_device(device, place.local_size)
    if on_gpu and place.local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {place.local_rank} of {place.local_size} on this machine: found "
            f"{torch.cuda.device_count()} GPUs, expected one for each process, visible to all "
            "of them (srun: --gpus-per-node, and --gpu-bind=none)"
        )
    os.environ |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
    }
    dist.init_process_group(
        backend="nccl" if on_gpu else "gloo", init_method=_ENVIRONMENT, timeout=DEFAULT_TIMEOUT
    )
    comm.create_local_process_group(place.local_size)
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    comm.synchronize()
