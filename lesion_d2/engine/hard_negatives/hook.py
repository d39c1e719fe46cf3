"""The hook that mines hard negatives during training."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint_files.checkpointer import LesionCheckpointer
from ..processes import share_running_statistics
from ..resuming import ProcessStateHook
from .miner import HardNegativeMiner
from .results import MinedSet, check_state, write_mined_set

logger = logging.getLogger(__name__)


class HardNegativeMiningHook(HookBase):
    """Mines hard negatives between epochs; training continues with them as a separate class.

    The new set replaces the previous one. After each mining, the training loader restarts with
    workers that have the new set, and continues in the order of images. The set is saved in
    checkpoints: a checkpoint that was already written in the same iteration is written again.
    ``OUTPUT_DIR/inference/<data set>/hard_negatives.json`` has the set in COCO's results format,
    with S2 as ``mask_iou``, or ``box_iou`` for models without masks, and boxes in the coordinates
    of the data set's files (:func:`lesion_d2.structures.boxes.first_pixel`);
    ``lesion_d2.tools.visualize negatives`` draws it.

    Args:
        period: iterations between two minings; there is none after the last iteration.
        start_iter: first iteration at which to mine.
        miner: finds the hard negatives.
        checkpointer: checkpointer of the run.
        states: saves the state of the processes after mining.
    """

    def __init__(
        self,
        period: int,
        *,
        start_iter: int = 0,
        miner: HardNegativeMiner,
        checkpointer: LesionCheckpointer,
        states: ProcessStateHook | None = None,
    ):
        self._period = period
        self._states = states
        self._start_iter = start_iter
        self._miner = miner
        self._checkpointer = checkpointer
        self._mined_at = -1
        self._negatives: Mapping[str, list[dict]] = {}

    def state_dict(self) -> dict:
        """The current set, and the iteration after which it was mined."""
        return {"mined_at": self._mined_at, "negatives": self._negatives}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue with the set of a checkpoint.

        Raises:
            InputError: it is invalid; the message contains the image and the key.
        """
        check_state(state_dict)
        self._mined_at = state_dict["mined_at"]
        self._negatives = state_dict["negatives"]

    def before_train(self) -> None:
        """Pass the set of a checkpoint to the loader; fail early if mining cannot work."""
        self._miner.loaders()
        if self._mined_at >= 0:
            self.trainer.restart_loader(self.trainer.start_iter, self._negatives)

    def after_step(self) -> None:
        """Mine every ``period`` iterations."""
        iteration, next_iter = self.trainer.iter, self.trainer.iter + 1
        if (
            next_iter % self._period == 0
            and self._start_iter <= next_iter < self.trainer.max_iter
            and self._mined_at < iteration
        ):
            self._mine(iteration)

    def _mine(self, iteration: int) -> None:
        start = time.perf_counter()
        share_running_statistics(self.trainer.model)
        mined = MinedSet()
        for share in comm.all_gather(self._miner.mine(self.trainer.model, iteration)):
            mined.add(share)
        self._mined_at, self._negatives = iteration, mined.by_image
        self.trainer.restart_loader(iteration + 1, self._negatives)
        self._report(mined, time.perf_counter() - start)
        if comm.is_main_process():
            write_mined_set(mined, self._checkpointer.save_dir)
        if self._states is not None:
            self._states.keep("after")
        name = f"model_{iteration:07d}"
        if self._checkpointer.has_checkpoint() and (
            Path(self._checkpointer.get_checkpoint_file()).stem == name
        ):
            self._checkpointer.save(name, iteration=iteration)

    def _report(self, mined: MinedSet, seconds: float) -> None:
        num_negatives = sum(map(len, self._negatives.values()))
        share = mined.num_good / mined.num_images
        self.trainer.storage.put_scalars(
            **{
                "hard_negatives/number": num_negatives,
                "hard_negatives/good_images": share,
                "hard_negatives/seconds": seconds,
            },
            smoothing_hint=False,
        )
        logger.info(
            f"Mined {num_negatives} hard negatives on {len(self._negatives)} of {mined.num_images} "
            f"images; {100 * share:.1f} % of the images have a good detection; {seconds:.1f} s"
        )
