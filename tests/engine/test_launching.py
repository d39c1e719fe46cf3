from lesion_d2.engine import InputError, launch_run
from lesion_d2.engine.launching import Place, find_place

import pytest
from tiny_run import tiny_args

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_JOB_ID": "4020003",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],big1",
}


def test_variables_of_torchrun_are_read_without_being_asked_for():
    expected = Place(5, 8, 1, 4, "host", 29500)
    assert find_place("tcp://127.0.0.1:50000", TORCHRUN) == expected
    assert find_place("env://", {**TORCHRUN, **SLURM}) == expected
    plain = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert find_place("tcp://127.0.0.1:50000", plain) is None
    assert find_place("env://", plain) == Place(5, 8, 0, 1, "host", 29500)  # a pod each


def test_variables_of_slurm_are_read_where_that_is_asked_for():
    assert find_place("tcp://127.0.0.1:50000", SLURM) is None
    assert find_place("env://", SLURM) == Place(3, 4, 1, 2, "gpu07", 20003)
    own = {**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29000"}
    assert find_place("env://", own) == Place(3, 4, 1, 2, "10.0.0.1", 29000)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        *(("a", "a"), ("a,b", "a"), ("n[3,5]", "n3"), ("n[003-4]-x,b", "n003-x")),
        *(("c1-[2-3]", "c1-2"), ("r[1-2]n[03-04,7],b", "r1n03")),
    ],
)
def test_the_first_process_listens_on_the_first_node(nodes, first):
    assert find_place("env://", {**SLURM, "SLURM_STEP_NODELIST": nodes}).address == first


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "found no MASTER_ADDR, expected to be started by torchrun or srun"),
        ({**TORCHRUN, "RANK": "x"}, "found RANK 'x', expected a number"),
        ({**TORCHRUN, "RANK": "8"}, "found process 8 of 8"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "on its machine 4 of 4; expected the same number"),
        ({**TORCHRUN, "WORLD_SIZE": "9"}, "expected the same number of processes on all machines"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "3,1"}, "use srun --ntasks-per-node"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a"}, "found WORLD_SIZE '', expected a num"),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, "found no MASTER_ADDR"),
    ],
)
def test_variables_that_make_no_sense_are_one_line(environ, message):
    with pytest.raises(InputError, match=message):
        find_place("env://", environ)


def test_a_process_of_a_launcher_starts_no_others(tmp_path, monkeypatch):
    for name, value in {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"found --num-gpus 2 and .* in one of 8 processes"):
        launch_run(lambda args: None, tiny_args(tmp_path, "--num-gpus", "2"))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    ran = []
    launch_run(ran.append, args := tiny_args(tmp_path))
    assert ran == [args]
