"""The trainer."""

import logging
import math
import operator
import os
import weakref
from collections.abc import Iterable, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils import comm
from torch import nn

from ..config.volumetric import is_volumetric
from ..data.dataset_options import DatasetOptions, read_dataset
from ..data.loader import (
    TrainLoader,
    build_lesion_loss_loader,
    build_lesion_test_loader,
    build_lesion_train_loader,
)
from ..data.volumetric import build_volume_test_loader, build_volume_train_loader
from ..evaluation import LesionEvaluator, VolumeEvaluator
from ..inference import Ensemble, OneSizeBatches, build_linker
from ..modeling import MeanTeacher, reuse_features, without_masks
from .checkpoint_files.best_checkpoints import KeepBestHook
from .checkpoint_files.checkpointer import LesionCheckpointer
from .evaluator_types import evaluator_type_of
from .hard_negatives import HardNegativeMiner, HardNegativeMiningHook
from .hooks import (
    CatchUpHook,
    EarlyStopHook,
    PlateauHook,
    RecentCheckpointer,
    ResumableBestCheckpointer,
    TrainingCurvesHook,
    TrainingStopped,
)
from .mean_teacher import STUDENT, MeanTeacherHook
from .predictors.ensembles import as_evaluated
from .processes import has_unused_parameters, share_running_statistics, unwrap
from .resuming import EvaluationWriter, ProcessStateHook, rewind_metrics
from .solver.clipping import fit_to_scaler, with_clipping
from .solver.compilation import compile_parts
from .solver.mixed_precision import step_trainer
from .solver.schedule import learning_rate_factor
from .validation_loss import VALIDATION_LOSS, ValidationLossHook

logger = logging.getLogger(__name__)

_ITERATION_KEYS = (
    ("TEST", "LOSS_PERIOD"),
    ("HARD_NEGATIVES", "PERIOD"),
    ("HARD_NEGATIVES", "START_ITER"),
)
_OPTIMIZERS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


class StoppableTrainer(TrainerBase):
    """A TrainerBase whose hooks can stop training before ``max_iter``."""

    def train(self, start_iter: int, max_iter: int) -> None:
        """As in TrainerBase; TrainingStopped from a hook ends training regularly.

        ``self.iter`` is then the last iteration, so that Detectron2's hooks do not evaluate again.
        """
        try:
            super().train(start_iter, max_iter)
        except TrainingStopped as reason:
            logger.info(reason)


# DefaultTrainer.train calls StoppableTrainer.train, and then finishes as usual.
class Trainer(DefaultTrainer, StoppableTrainer):
    """DefaultTrainer for lesions: our loaders, evaluator and checkpoints; on CPUs as on GPUs.

    The best checkpoint by TEST.BEST_METRIC on the (first) data set of DATASETS.TEST is kept as
    ``model_best.pth`` beside Detectron2's ``model_final.pth``, and the weights of the
    TEST.NUM_BEST_CHECKPOINTS best ones in ``best``. SOLVER.PLATEAU_PATIENCE and
    SOLVER.EARLY_STOP_PATIENCE enable reduce-on-plateau and early stopping by the same metric, or by
    the loss on DATASETS.TEST
    (SOLVER.PATIENCE_METRIC). HARD_NEGATIVES.PERIOD enables mining of hard negatives. With
    MODEL.MEAN_TEACHER.ENABLED the teacher is evaluated and saved, as a plain model; checkpoints
    also contain the student.
    """

    def __init__(self, cfg: CfgNode):
        # As in DefaultTrainer, which cannot be called: it wraps the model for GPUs only.
        TrainerBase.__init__(self)
        if getattr(self.build_evaluator, "__func__", None) is Trainer.build_evaluator.__func__:
            for name in cfg.DATASETS.TEST:  # not only after the training
                evaluator_type_of(cfg, name)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)

        on_cpu = cfg.MODEL.DEVICE == "cpu"
        # The trained model, and the model that is evaluated and saved.
        trained, final = model, model
        if cfg.MODEL.MEAN_TEACHER.ENABLED:
            trained = MeanTeacher(cfg, model)
            final = trained.teacher
        finds_unused = comm.get_world_size() > 1 and has_unused_parameters(model)
        if cfg.SOLVER.COMPILE:
            compile_parts(trained)
        trained = create_ddp_model(
            trained,
            broadcast_buffers=False,
            find_unused_parameters=finds_unused,
            **({"device_ids": None} if on_cpu else {}),
        )
        self._trainer = step_trainer(cfg)(trained, data_loader, optimizer)

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        parts = {"trainer": weakref.proxy(self)}
        if final is not model:
            parts[STUDENT] = model
        file_format = cfg.SOLVER.CHECKPOINT_FORMAT
        self.checkpointer = LesionCheckpointer(
            final, cfg.OUTPUT_DIR, file_format=file_format, **parts
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As in DefaultTrainer; images and metrics continue from the checkpoint."""
        super().resume_or_load(resume)
        if self.start_iter == 0 and self.cfg.MODEL.MEAN_TEACHER.ENABLED:
            unwrap(self.model).restart()
        if self.start_iter > 0:
            self.restart_loader(self.start_iter)
            if comm.is_main_process():
                rewind_metrics(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter)

    @property
    def loader(self) -> TrainLoader:
        """The training loader."""
        return self._trainer.data_loader

    def state_dict(self) -> dict:
        """As in TrainerBase, with the seed of the order of training images."""
        return {**super().state_dict(), "order_seed": self.loader.order_seed}

    def load_state_dict(self, state_dict: dict) -> None:
        """As in TrainerBase; restores the order of training images."""
        super().load_state_dict(state_dict)
        if "order_seed" in state_dict:  # older checkpoints have none
            self.loader.order_seed = state_dict["order_seed"]

    def restart_loader(
        self, start_iter: int, hard_negatives: Mapping[str, list[dict]] | None = None
    ) -> None:
        """Restart the loader processes at the batch of ``start_iter``.

        Args:
            start_iter, hard_negatives: see :meth:`TrainLoader.restart`.
        """
        loader = self.loader
        loader.restart(start_iter, hard_negatives)
        self._trainer.reset_data_loader(lambda: loader)

    def restore_loader(self, state: dict) -> None:
        """After a restart, continue the augmentations of another run.

        Args:
            state: see :meth:`TrainLoader.state_dict`.
        """
        loader = self.loader
        loader.load_state_dict(state)
        self._trainer.reset_data_loader(lambda: loader)

    def build_hooks(self) -> list[HookBase]:
        """DefaultTrainer's hooks, and ours between epochs, after the evaluation."""
        # In all processes, which load its state; Detectron2 has it only in the first one.
        built = [h for h in super().build_hooks() if not isinstance(h, hooks.PeriodicCheckpointer)]
        index = next(i for i, h in enumerate(built) if isinstance(h, hooks.EvalHook))
        solver = self.cfg.SOLVER
        period, max_to_keep = solver.CHECKPOINT_PERIOD, solver.CHECKPOINT_MAX_TO_KEEP
        built.insert(index, RecentCheckpointer(self.checkpointer, period, max_to_keep=max_to_keep))
        states = ProcessStateHook(period)
        built.insert(index, states)
        index += 2
        late = [built[index], *self._build_metric_hooks(), *self._build_mining_hooks(states)]
        built[index : index + 1] = late
        catches_up = len(late) > 1  # an EvalHook alone has nothing to evaluate
        built.append(CatchUpHook(self.cfg.TEST.EVAL_PERIOD, late if catches_up else (), states))
        built += [self._build_writer(built), TrainingCurvesHook(self.cfg.OUTPUT_DIR)]
        # First: checkpoints and evaluations use the teacher after its update.
        return [MeanTeacherHook(), *built] if self.cfg.MODEL.MEAN_TEACHER.ENABLED else built

    def _build_writer(self, built: list[HookBase]) -> HookBase | None:
        """The replacement of Detectron2's PeriodicWriter, in the first process."""
        for hook in [h for h in built if isinstance(h, hooks.PeriodicWriter)]:
            built.remove(hook)
            cfg = self.cfg
            periods = cfg.TEST.EVAL_PERIOD, cfg.TEST.LOSS_PERIOD, cfg.HARD_NEGATIVES.PERIOD
            return EvaluationWriter(hook._writers, periods, hook._period)
        return None

    def _build_metric_hooks(self) -> list[HookBase]:
        cfg, solver = self.cfg, self.cfg.SOLVER
        if not cfg.DATASETS.TEST:
            return []
        built = []
        if cfg.TEST.LOSS_PERIOD > 0:
            loader, amp = build_lesion_loss_loader(cfg), solver.AMP.ENABLED
            seed = max(cfg.SEED, 0)
            built.append(ValidationLossHook(cfg.TEST.LOSS_PERIOD, loader, use_amp=amp, seed=seed))
        period, metric, mode = cfg.TEST.EVAL_PERIOD, best_metric_name(cfg), "max"
        if solver.PATIENCE_METRIC == VALIDATION_LOSS:
            period, metric, mode = cfg.TEST.LOSS_PERIOD, VALIDATION_LOSS, "min"
        picks_best = period, self.checkpointer, metric, mode
        built.append(ResumableBestCheckpointer(*picks_best))
        if cfg.TEST.NUM_BEST_CHECKPOINTS > 0:
            built.append(
                KeepBestHook(
                    *picks_best,
                    max_to_keep=cfg.TEST.NUM_BEST_CHECKPOINTS,
                    best_checkpointer=built[-1],
                )
            )
        if solver.PLATEAU_PATIENCE > 0:
            patience, factor = solver.PLATEAU_PATIENCE, solver.PLATEAU_FACTOR
            built.append(PlateauHook(period, metric, patience=patience, factor=factor, mode=mode))
        if solver.EARLY_STOP_PATIENCE > 0:  # last, because it ends training
            stop = {"patience": solver.EARLY_STOP_PATIENCE, "checkpointer": self.checkpointer}
            built.append(EarlyStopHook(period, metric, mode=mode, **stop))
        return built

    def _build_mining_hooks(self, states: ProcessStateHook) -> list[HookBase]:
        options = self.cfg.HARD_NEGATIVES
        if options.PERIOD <= 0:
            return []
        return [
            HardNegativeMiningHook(
                options.PERIOD,
                start_iter=options.START_ITER,
                miner=HardNegativeMiner(self.cfg),
                checkpointer=self.checkpointer,
                states=states,
            )
        ]

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """As in DefaultTrainer, also for our keys in iterations."""
        before = cfg.SOLVER.REFERENCE_WORLD_SIZE
        cfg = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if before in (0, num_workers):
            return cfg
        is_frozen = cfg.is_frozen()
        cfg.defrost()
        for section, key in _ITERATION_KEYS:
            cfg[section][key] = math.ceil(cfg[section][key] * before / num_workers)
        if is_frozen:
            cfg.freeze()
        return cfg

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """As in DefaultTrainer, with the best memory format for its convolutions.

        This is channels last on a CPU, except for models of volumes, and on a GPU with
        MODEL.CHANNELS_LAST.
        """
        model, on_cpu = super().build_model(cfg), cfg.MODEL.DEVICE == "cpu"
        # With channels last, a training step of the quickstart takes 0.6 times as long on a CPU.
        if is_volumetric(cfg) if on_cpu else not cfg.MODEL.CHANNELS_LAST:
            return model
        layout = torch.channels_last_3d if is_volumetric(cfg) else torch.channels_last
        return model.to(memory_format=layout)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """SGD as Detectron2 builds it, or Adam or AdamW over the same groups of parameters.

        Raises:
            ValueError: SOLVER.OPTIMIZER or CLIP_GRADIENTS.CLIP_TYPE is unknown, or
                SOLVER.LR_FACTORS names a layer that the model does not have.
        """
        optimizer, solver = optimizer_class(cfg), cfg.SOLVER
        parameters = get_default_optimizer_params(
            model,
            base_lr=solver.BASE_LR,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            bias_lr_factor=solver.BIAS_LR_FACTOR,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
            lr_factor_func=learning_rate_factor(cfg, model),
        )
        fused = solver.FUSED and cfg.MODEL.DEVICE != "cpu"
        options = {"fused": True} if fused else {}
        if optimizer is torch.optim.SGD:
            options = options or {"foreach": True}
            options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
        built = with_clipping(cfg, optimizer)(
            parameters, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, **options
        )
        fit_to_scaler(cfg, built)
        return built

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """See :func:`build_lesion_train_loader` and :func:`build_volume_train_loader`."""
        build = build_volume_train_loader if is_volumetric(cfg) else build_lesion_train_loader
        return build(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        """See :func:`build_lesion_test_loader` and :func:`build_volume_test_loader`."""
        if is_volumetric(cfg):  # a volume at a time; its tiles are the batches
            return build_volume_test_loader(cfg, dataset_name)
        return build_lesion_test_loader(cfg, dataset_name, batch_size=cfg.TEST.IMS_PER_BATCH)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict:
        """As in DefaultTrainer; all processes evaluate with the running statistics of the first.

        Checkpoints contain them, and all processes keep them. In volumes, neighboring key slices
        share the features of their images, see :func:`reuse_features`. A model of volumes is
        applied to tiles, see :func:`as_evaluated`. A batch has TEST.IMS_PER_BATCH images of the
        same size (:class:`OneSizeBatches`). Masks are not computed if no evaluator uses them.
        """
        share_running_statistics(model)
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        needs_masks = any(getattr(evaluator, "needs_masks", True) for evaluator in evaluators)
        kinds = {MetadataCatalog.get(name).get("evaluator_type") for name in cfg.DATASETS.TEST}
        num_reused = count_reused(cfg, model) if "lesion_volume" in kinds else 0
        was_training = model.training  # as_evaluated changes it
        evaluated = as_evaluated(cfg, model if needs_masks else without_masks(unwrap(model)))
        if cfg.TEST.IMS_PER_BATCH > 1 and not is_volumetric(cfg):
            evaluated = OneSizeBatches(evaluated)
        try:
            with reuse_features(model, num_reused):
                return super().test(cfg, evaluated, evaluators)
        finally:
            model.train(was_training)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build the evaluator according to the data set's ``evaluator_type``.

        "lesion" computes FROC and COCO's metrics; "lesion_volume" evaluates boxes in 3-D, linked
        over slices or predicted by a model of volumes. Both write to
        ``OUTPUT_DIR/inference/<dataset_name>``.

        Raises:
            ValueError: the data set's ``evaluator_type`` is unknown, or "lesion" with a model of
                volumes.
        """
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        options = DatasetOptions.from_config(cfg, dataset_name, "TEST")
        is_lesion = evaluator_type_of(cfg, dataset_name) == "lesion"
        records = read_dataset(dataset_name, options)
        if is_lesion:
            return LesionEvaluator(cfg, dataset_name, output_dir, records=records)
        link = None if is_volumetric(cfg) else build_linker(cfg)
        return VolumeEvaluator(cfg, dataset_name, output_dir, link=link, records=records)


def count_reused(cfg: CfgNode, model: nn.Module) -> int:
    """Return the number of three-slice images with cached features, for all views."""
    num_mirrors = model.num_mirrors if isinstance(model, Ensemble) else 1
    return cfg.MODEL.SLICE_IMAGES.FEATURE_CACHE_SIZE * num_mirrors


def optimizer_class(cfg: CfgNode) -> type[torch.optim.Optimizer]:
    """Return the optimizer class of SOLVER.OPTIMIZER.

    Raises:
        ValueError: the name is unknown.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name not in _OPTIMIZERS:
        raise ValueError(
            f"SOLVER.OPTIMIZER: found {name!r}, expected one of {', '.join(_OPTIMIZERS)}"
        )
    return _OPTIMIZERS[name]


def optimizer_name(state: Mapping) -> str:
    """Return the SOLVER.OPTIMIZER that a state belongs to; "another optimizer" if unknown.

    Args:
        state: state of an optimizer, as in a checkpoint.
    """
    found = state["param_groups"][0]
    for name, optimizer in _OPTIMIZERS.items():
        known = optimizer([torch.zeros(1)], lr=1.0).param_groups[0]
        decoupled = (group.get("decoupled_weight_decay") for group in (found, known))
        if known.keys() - found.keys() <= {"params"} and operator.eq(*decoupled):
            return name
    return "another optimizer"


def best_metric_name(cfg: CfgNode) -> str:
    """Return the name of TEST.BEST_METRIC in the event storage.

    With several data sets in DATASETS.TEST, Detectron2 prefixes metrics by the data set's name; the
    first data set is used unless TEST.BEST_METRIC begins with the name of another.
    """
    metric, names = cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST
    if len(names) == 1 or metric.split("/")[0] in names:
        return metric
    return f"{names[0]}/{metric}"
