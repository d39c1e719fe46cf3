"""Reading, checking and writing checkpoints."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn

from . import (
    ENDINGS,
    FORMATS,
    RefusedFile,
    last_checkpoint,
    read_file,
    tag_checkpoint,
    write_file,
)
from .first_convolution import adapt_slices, check_slices
from .torchvision_weights import (
    PREFIX,
    rename_torchvision_resnet,
    rename_torchvision_weights,
)

logger = logging.getLogger(__name__)

_NO_ADDRESS = urlparse("")
# Suffixes of the class predictors of Detectron2's R-CNNs and RetinaNet.
_RCNN_PREDICTOR = "box_predictor.cls_score.weight"
_PREDICTOR = "cls_score.weight"


def read_checkpoint(path: str) -> dict:
    """Read a checkpoint of :class:`LesionCheckpointer` to the CPU; tensors are memory-mapped.

    Raises:
        ValueError: the file is not a checkpoint, damaged or truncated; the message names it.
    """
    with _explain_bad_file(path):
        return read_file(path, mmap=True)


@contextmanager
def _explain_bad_file(path: str) -> Iterator[None]:
    """Turn all exceptions that a broken file causes into one ValueError that names it."""
    try:
        yield
    except RefusedFile as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path}: found no complete checkpoint in {os.path.getsize(path)} bytes ({reason}), "
            "expected a .pth, .safetensors or .pkl file of weights"
        ) from error


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class LesionCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that tolerates being killed, for images with C channels.

    - Checkpoints, and the tag of the last one, are written atomically.
    - A checkpoint can be saved without becoming the last one, from which runs resume.
    - If only weights are loaded to train from, a first convolution for three channels is adapted to
      C: :func:`adapt_slices`. Another number of channels is an error: :func:`check_slices`.
    - torchvision's weights are renamed for torchvision's backbones and for Detectron2's ResNets:
      :func:`rename_torchvision_weights` and :func:`rename_torchvision_resnet`.
    - A file without any of the model's weights, or with non-finite weights, is an error.
    - A file for an R-CNN with one class more or less is an error: :func:`check_predictor`.
    - A file that is not a checkpoint, truncated or damaged is an error that names it.
    - Files cannot run code: see :func:`~lesion_d2.engine.checkpoint_files.read_file`.

    Args:
        model, save_dir, checkpointables: as in Detectron2.
        file_format: format of written files, one of
            :data:`~lesion_d2.engine.checkpoint_files.FORMATS`.
    """

    #: Whether the next loaded weights may be adapted to the model's slices.
    _may_adapt_slices = True

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        file_format: str = FORMATS[0],
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.file_format = file_format

    def file_name(self, name: str) -> str:
        """Return the file name that :meth:`save` writes, with its suffix."""
        return f"{name}.{self.file_format}"

    def save(self, name: str, *, tag_last: bool = True, **kwargs: Any) -> None:
        """Write model, checkpointables and ``kwargs`` to a file in ``save_dir``.

        It replaces a checkpoint of the same name, also of another format.

        Args:
            name: file name without suffix.
            tag_last: make this the checkpoint that ``--resume`` uses.

        Raises:
            OSError: the file cannot be written, for example because the disk is full; the message
                names it.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, self.file_name(name))
        self.logger.info(f"Saving checkpoint to {path}")
        write_file(data, path)
        if tag_last:
            self.tag_last_checkpoint(self.file_name(name))
        for file in self.files_of(name):
            if file != path:
                os.remove(file)

    def files_of(self, name: str) -> list[str]:
        """Return the paths of a checkpoint in ``save_dir``, in any format."""
        paths = (os.path.join(self.save_dir, name + ending) for ending in ENDINGS)
        return [path for path in paths if os.path.isfile(path)]

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a checkpoint the one that ``--resume`` uses."""
        tag_checkpoint(self.save_dir, last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether ``save_dir`` has a tag of the last checkpoint."""
        return last_checkpoint(self.save_dir) is not None

    def get_checkpoint_file(self) -> str:
        """Return the path of the last checkpoint; "" if there is none.

        Raises:
            ValueError: the tag does not name a file in ``save_dir``.
        """
        return last_checkpoint(self.save_dir) or ""

    def load(
        self, path: str, checkpointables: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in Detectron2.

        Raises:
            FileNotFoundError: ``path`` is a local file that does not exist, or torchvision's
                weights are neither cached nor available for download.
            ValueError: the file is not a checkpoint, truncated, lacks weights of the backbone,
                has no weights for the model, or is for one class more or less.
        """
        check_weights_exist(path)
        # When training is resumed, the weights are the model's own.
        resumes = checkpointables is None and len(self.checkpointables) > 0
        self._may_adapt_slices = not resumes
        try:
            if os.path.isfile(path):  # Detectron2 would parse "?" in its path as a query
                self._parsed_url_during_load = _NO_ADDRESS
                return Checkpointer.load(self, path, checkpointables, **kwargs)
            return super().load(path, checkpointables, **kwargs)
        finally:
            self._may_adapt_slices = True
            self._parsed_url_during_load = None  # Detectron2 does not reset it after an error

    def _load_file(self, filename: str) -> dict[str, Any]:
        with _explain_bad_file(filename):
            loaded = dict(read_file(filename))
            query = parse_qs(self._parsed_url_during_load.query)
            if query.pop("matching_heuristics", ["False"]) == ["True"]:
                loaded["matching_heuristics"] = True
            if query:
                raise ValueError(
                    f"found the query {query} after its name, expected matching_heuristics"
                )
            weights = loaded["model"]
            if not isinstance(weights, Mapping) or not weights:
                raise ValueError(f"'model' is {type(weights).__name__}, not named weights")
            for name, value in weights.items():
                if not isinstance(name, str) or not isinstance(value, Tensor | np.ndarray):
                    raise ValueError(f"{name!r} is {type(value).__name__}, not a tensor")
        model_weights = self.model.state_dict()
        is_other = loaded.get("matching_heuristics")  # Detectron2 matches the names
        with _naming(filename):
            num_resnets = 0 if is_other else rename_torchvision_resnet(weights, self.model)
            if self._may_adapt_slices:
                adapt_slices(weights, model_weights)
            check_slices(weights, self.model)
            if num_resnets == 0 and not is_other:
                self._fit_torchvision(weights)
            check_predictor(weights, model_weights)
            matched = matched_weights(loaded, model_weights)
            check_any(matched, weights, model_weights)
            check_numbers(matched, model_weights)
        return loaded

    def _fit_torchvision(self, weights: dict[str, Any]) -> None:
        num_backbones = rename_torchvision_weights(weights, self.model)
        url = self._parsed_url_during_load.geturl()
        if url.startswith(PREFIX) and num_backbones == 0:
            raise ValueError(
                f"{url}: found no torchvision backbone in the model, expected a "
                "MODEL.BACKBONE.NAME with one, such as build_vgg_fpn_backbone, or a ResNet"
            )


def check_weights_exist(path: str) -> None:
    """Check that a weight file exists; URLs such as ``detectron2://`` are left to Detectron2.

    Raises:
        FileNotFoundError: ``path`` is a local file that does not exist.
    """
    if path and "://" not in path and not any(map(os.path.isfile, (path, path.split("?")[0]))):
        raise FileNotFoundError(f"{path}: no such weight file")


def check_weights(path: str, model: nn.Module | None = None, *, for_training: bool = True) -> None:
    """Check by reading that weights exist, are complete, and match a model.

    Args:
        path: a file, ``torchvision://<model>``, or a URL that is left to Detectron2.
        model: the model or only its backbone; may be on the meta device.
        for_training: see :func:`check_predictor`; if False, :func:`check_complete` applies, too.

    Raises:
        FileNotFoundError: ``path`` is a local file that does not exist, or torchvision's weights
            are neither cached nor available for download.
        ValueError: see :meth:`LesionCheckpointer.load`, :func:`check_predictor` and
            :func:`check_complete`.
    """
    check_weights_exist(path)
    if path and ("://" not in path or path.startswith(PREFIX)):
        checkpointer = LesionCheckpointer(model or nn.Identity())
        # As in ``load``.
        is_file = os.path.isfile(path)
        checkpointer._parsed_url_during_load = _NO_ADDRESS if is_file else urlparse(path)
        local = path if is_file else PathManager.get_local_path(path.split("?")[0])
        checkpointer._may_adapt_slices = for_training
        loaded = checkpointer._load_file(local)
        weights, model_weights = loaded["model"], checkpointer.model.state_dict()
        with _naming(local):
            check_predictor(weights, model_weights, for_training=for_training)
            if not for_training and model_weights:
                check_complete(matched_weights(loaded, model_weights), model_weights)


def load_trained(checkpointer: LesionCheckpointer, path: str) -> None:
    """Load all weights of a trained model, and nothing else from its checkpoint.

    Args:
        checkpointer: checkpointer of the model.
        path: see :func:`check_weights`; "" to load nothing.

    Raises:
        FileNotFoundError, ValueError: see :func:`check_weights` with ``for_training=False``.
    """
    check_weights(path, checkpointer.model, for_training=False)
    checkpointer.load(path, checkpointables=[])


def matched_weights(
    loaded: Mapping[str, Any], model_weights: Mapping[str, Tensor]
) -> Mapping[str, Any]:
    """Return the weights of a file by the model's names, using Detectron2's matching if needed.

    Args:
        loaded: content of a file as read by :class:`LesionCheckpointer`; files of other projects
            have ``matching_heuristics``.
        model_weights: state dict of the model.
    """
    weights = loaded["model"]
    if not loaded.get("matching_heuristics"):
        return weights
    aligner = logging.getLogger(align_and_update_state_dicts.__module__)
    was_disabled, aligner.disabled = aligner.disabled, True  # it logs the matches again on loading
    try:
        return align_and_update_state_dicts(
            dict(model_weights),
            {name: torch.as_tensor(value) for name, value in weights.items()},
            c2_conversion=loaded.get("__author__") == "Caffe2",
        )
    finally:
        aligner.disabled = was_disabled


def check_any(
    matched: Mapping[str, Any], weights: Mapping[str, Any], model_weights: Mapping[str, Tensor]
) -> None:
    """Check that a file contains weights for a model.

    Args:
        matched: names, as returned by :func:`matched_weights`, to tensors or arrays.
        weights: weights as in the file.
        model_weights: state dict of the model.

    Raises:
        ValueError: no weight matches the model in name and shape; training would start from random
            weights, perhaps with frozen normalization.
    """
    found = {name.removeprefix("module."): value.shape for name, value in matched.items()}
    # Counters and image statistics exist in any model.
    known = {n: t for n, t in model_weights.items() if t.dim() > 0 and "pixel_" not in n}
    if known and not any(found.get(name) == target.shape for name, target in known.items()):
        raise ValueError(
            f"found none of the model's weights among its {len(weights)} names such as "
            f"{next(iter(weights), None)}, expected names such as {next(iter(known))}"
        )


def check_numbers(matched: Mapping[str, Any], model_weights: Mapping[str, Tensor]) -> None:
    """Check that a model's weights are finite real numbers.

    Args:
        matched: names, as returned by :func:`matched_weights`, to tensors or arrays.
        model_weights: state dict of the model.

    Raises:
        ValueError: weights are NaN or infinite, for example because training diverged; or are
            integer or complex where the model has floating point.
    """
    bad = [
        name
        for name, value in matched.items()
        if (target := model_weights.get(name.removeprefix("module."))) is not None
        and target.is_floating_point()
        and not _are_finite(torch.as_tensor(value))
    ]
    if bad:
        raise ValueError(
            f"found {len(bad)} of the model's weights that are not finite real numbers, "
            f"such as {bad[0]}; expected those of a training that did not diverge"
        )


def _are_finite(values: Tensor) -> bool:
    return values.is_floating_point() and bool(values.isfinite().all())


def check_complete(weights: Mapping[str, Any], model_weights: Mapping[str, Tensor]) -> None:
    """Check that weights are complete for a trained model.

    Detectron2 only logs missing weights and keeps their random initialization, which gives random
    detections.

    Args:
        weights: names to tensors or arrays.
        model_weights: state dict of the model.

    Raises:
        ValueError: weights are missing or have another shape, or belong to an attention module that
            the model does not have.
    """
    found = {name.removeprefix("module."): value.shape for name, value in weights.items()}
    lacking = [
        name
        for name, target in model_weights.items()
        if found.get(name) != target.shape and not name.endswith(".num_batches_tracked")
    ]
    if lacking:
        raise ValueError(
            f"found {len(lacking)} of the model's weights missing or of another shape, such "
            f"as {lacking[0]}; expected a checkpoint of this config's model"
        )
    ignored = [name for name in found.keys() - model_weights.keys() if "attention." in name]
    if ignored:
        raise ValueError(
            f"found {min(ignored)}, which the model does not have; expected a checkpoint of this "
            "config's model"
        )


def check_predictor(
    weights: Mapping[str, Any], model_weights: Mapping[str, Tensor], *, for_training: bool = True
) -> None:
    """Check that weights match a model's number of classes.

    Detectron2 skips weights of another shape with a log message. This is correct for fine-tuning on
    other classes. But loading Mask R-CNN's weights into ULDor, which has an additional class of
    false positives, or the reverse, is a mistake.

    Args:
        weights: names to tensors or arrays.
        model_weights: state dict of the model.
        for_training: whether the model will be trained. If not, any difference is an error, also
            for RetinaNet.

    Raises:
        ValueError: weights of an R-CNN are for one class more or less, or ``for_training`` is False
            and they are for other classes.
    """
    for name, target in model_weights.items():
        weight = weights.get(name, weights.get(f"module.{name}"))
        if not name.endswith(_PREDICTOR) or weight is None or weight.shape == target.shape:
            continue
        found, expected = len(weight) - 1, len(target) - 1  # without the background
        is_rcnn = name.endswith(_RCNN_PREDICTOR)
        if is_rcnn and abs(found - expected) == 1:
            raise ValueError(_other_classes(found, expected) + _advice(found, expected))
        if not for_training:
            shapes = (
                f"found {name} {tuple(weight.shape)}, expected {tuple(target.shape)}: another "
                "number of classes or anchors (see config.yaml in the OUTPUT_DIR of its training)"
            )
            raise ValueError(_other_classes(found, expected) if is_rcnn else shapes)


def _other_classes(found: int, expected: int) -> str:
    return (
        f"found a class predictor for {found} class{'es' * (found > 1)}, expected {expected} "
        "(MODEL.ROI_HEADS.NUM_CLASSES)"
    )


def _advice(found: int, expected: int) -> str:
    if found < expected:
        return (
            ": the checkpoint is of a model without the class of false positives. To use it set "
            f"MODEL.ROI_HEADS.NAME StandardROIHeads and NUM_CLASSES {found} (as "
            "configs/uldor/mask_rcnn.yaml); to train ULDor start from a backbone's weights"
        )
    return (
        ": the checkpoint is of a model with the class of false positives. To use it set "
        f"MODEL.ROI_HEADS.NAME ULDorROIHeads and NUM_CLASSES {found} (as "
        "configs/uldor/uldor.yaml); to train a model without it start from a backbone's weights"
    )
