"""A resumed run ends with the very bits of the run that was not interrupted."""

import shutil

from lesion_d2.engine.checkpoint_files.checkpointer import read_checkpoint

import torch
from run_training import train
from tiny_run import tiny_args, uldor_args
from tiny_volume_run import balls, volume_args

_TRAINED = {"SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_MAX_TO_KEEP": 0, "SOLVER__IMS_PER_BATCH": 2}
_UNSEEN = {"DATASETS__TEST": (), "TEST__EVAL_PERIOD": 0}


def differing(a: object, b: object, place: str = "") -> list[str]:
    """Where two checkpoints differ."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [place]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{place}: {a.keys() ^ b.keys()}"]
        return [p for key in a for p in differing(a[key], b[key], f"{place}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [place]
        return [p for i in range(len(a)) for p in differing(a[i], b[i], f"{place}/{i}")]
    return [] if a == b or (a != a and b != b) else [place]


def check_resumed(folder, make_args, *, at=(1,), **options) -> dict:
    """Train, and once more from some iterations; the final checkpoint, if it is always the same."""
    train(make_args(folder / "whole", **options))
    ending = options.get("SOLVER__CHECKPOINT_FORMAT", "pth")
    final = read_checkpoint(str(folder / "whole" / f"model_final.{ending}"))
    for iteration in at:
        again = folder / f"after_{iteration}"
        shutil.copytree(folder / "whole", again)
        (again / f"model_final.{ending}").unlink()
        (again / "last_checkpoint").write_text(f"model_{iteration:07d}.{ending}")
        (again / f".model_final.{ending}.part").write_bytes(b"half")  # killed while it wrote that
        train(make_args(again, "--resume", **options))
        assert not list(again.glob(".*.part"))
        assert differing(final, read_checkpoint(str(again / f"model_final.{ending}"))) == []
    return final


def test_a_retina_unet_goes_on_with_its_running_mean(tiny_phantom, tmp_path):
    """Detectron2 divides by it, begins with 100, and leaves it out of checkpoints.

    From the checkpoint of the last iteration only the final one is left to write.
    """
    final = check_resumed(tmp_path, tiny_args, at=(1, 3), **_TRAINED, **_UNSEEN)
    [state] = final["trainer"]["hooks"]["ProcessStateHook"]["before"]
    assert list(state["normalizers"]) == [""] and 0 < state["normalizers"][""] < 100


def test_an_r_cnn_draws_the_same_samples_after_evaluation_and_mining(tiny_phantom, tmp_path):
    """The checkpoint is written before both, and again after a mining."""
    options = {**_TRAINED, "HARD_NEGATIVES__PERIOD": 2}
    final = check_resumed(tmp_path, uldor_args, **options)
    assert final["trainer"]["hooks"]["HardNegativeMiningHook"]["mined_at"] == 1
    rewritten = read_checkpoint(str(tmp_path / "whole" / "model_0000001.pth"))
    states = rewritten["trainer"]["hooks"]["ProcessStateHook"]
    assert differing(states["before"][0]["torch"], states["after"][0]["torch"])  # both draw


def test_augmentations_of_workers_go_on_where_they_were(tiny_phantom, tmp_path):
    """After one batch, when the second worker has told nothing yet, and after three."""
    options = {
        **_TRAINED,
        **_UNSEEN,
        "SOLVER__CHECKPOINT_PERIOD": 1,
        "DATALOADER__NUM_WORKERS": 2,
        "INPUT__AUG__HFLIP_PROB": 0.5,
        "INPUT__AUG__MAX_ROTATION": 0.5,
    }
    final = check_resumed(tmp_path, tiny_args, at=(0, 2), **options)
    [state] = final["trainer"]["hooks"]["ProcessStateHook"]["before"]
    assert state["loader"]["workers"]["num_batches"] == 4


def test_a_run_without_a_seed_and_with_safetensors_is_resumed_as_it_were(tiny_phantom, tmp_path):
    options = {**_TRAINED, **_UNSEEN, "SEED": -1, "SOLVER__CHECKPOINT_FORMAT": "safetensors"}
    check_resumed(tmp_path, uldor_args, **options)
    assert not list(tmp_path.rglob("*.pth"))


def test_a_model_of_volumes_goes_on_as_it_was(tmp_path):
    with balls(tmp_path / "balls"):
        check_resumed(tmp_path, volume_args, **_TRAINED, **_UNSEEN)


def test_old_checkpoints_are_resumed(tiny_phantom, tmp_path):
    """Those without states of processes."""
    args = {**_TRAINED, **_UNSEEN, "SOLVER__MAX_ITER": 1}
    trainer = train(tiny_args(tmp_path, **args))
    path = str(tmp_path / "model_final.pth")
    saved = torch.load(path, weights_only=True)
    del saved["trainer"]["hooks"]["ProcessStateHook"]
    torch.save(saved, path)
    args["SOLVER__MAX_ITER"] = 2
    trainer = train(tiny_args(tmp_path, "--resume", **args))
    assert trainer.start_iter == 1 and 90 < trainer.model.loss_normalizer < 100
