"""``MODEL.WEIGHTS: torchvision://resnet50``, and files of torchvision's weights."""

import os
import re
from http.client import HTTPException
from typing import IO, Any

import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import ResNet
from detectron2.utils.file_io import PathHandler, PathManager
from torch import nn

PREFIX = "torchvision://"
# Old names in torchvision's DenseNet files, when module names could contain a dot.
_OLD_DENSENET_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)")


# Keys that identify a torchvision ResNet, and the names of its modules in Detectron2.
_OF_RESNET = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")
_RESNET_NAMES = (
    (r"conv1\.(.+)", r"stem.conv1.\1"),
    (r"bn1\.(.+)", r"stem.conv1.norm.\1"),
    (r"layer(\d+)\.(\d+)\.conv(\d)\.(.+)", r"layer\1.\2.conv\3.\4"),
    (r"layer(\d+)\.(\d+)\.bn(\d)\.(.+)", r"layer\1.\2.conv\3.norm.\4"),
    (r"layer(\d+)\.(\d+)\.downsample\.0\.(.+)", r"layer\1.\2.shortcut.\3"),
    (r"layer(\d+)\.(\d+)\.downsample\.1\.(.+)", r"layer\1.\2.shortcut.norm.\3"),
)


class TorchvisionHandler(PathHandler):
    """Resolves ``torchvision://<model>`` to the file with torchvision's default weights.

    The file is in torchvision's cache (``$TORCH_HOME/hub/checkpoints``), and is downloaded if
    missing.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = path.removeprefix(PREFIX)
        if name not in torchvision.models.list_models(module=torchvision.models):
            raise ValueError(f"{path}: found no model {name!r} in torchvision, expected e.g. vgg19")
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        file = os.path.join(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
        if force or not os.path.isfile(file):
            os.makedirs(os.path.dirname(file), exist_ok=True)
            # The name ends with the first digits of the file's SHA-256, after the last dash.
            checksum = file.rpartition("-")[2].partition(".")[0]
            try:
                torch.hub.download_url_to_file(url, file, hash_prefix=checksum)
            except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: wrong checksum
                raise FileNotFoundError(
                    f"{path}: found no file {file}, and cannot download {url} completely ({error})"
                ) from error
        return file

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return os.path.isfile(self._get_local_path(path))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return open(self._get_local_path(path), mode, buffering=buffering)


PathManager.register_handler(TorchvisionHandler())


def rename_torchvision_weights(weights: dict[str, Any], model: nn.Module) -> int:
    """Rename torchvision's weights to the names in a model with torchvision's backbones.

    Such a backbone has the attribute ``torchvision_name``. Weights that it does not have, such as
    the classifier, are removed. Old names in DenseNet files are converted, as in torchvision.
    Weights with the model's names, and models with other backbones, are not changed.

    Args:
        weights: names to tensors; modified in place.
        model: the model, a detector or a backbone.

    Returns:
        The number of such backbones in the model.

    Raises:
        ValueError: parameters of a backbone are missing in ``weights`` or have another shape; the
            message names them.
    """
    found = {name: m for name, m in model.named_modules() if hasattr(m, "torchvision_name")}
    tops = {name.partition(".")[0] for name in found}
    # A detector's checkpoint, possibly of DistributedDataParallel.
    if not found or any(n.removeprefix("module.").partition(".")[0] in tops for n in weights):
        return len(found)
    for name in list(weights):
        if old := _OLD_DENSENET_NAME.fullmatch(name):
            weights[old[1] + old[2]] = weights.pop(name)
    renamed = {}
    for prefix, backbone in found.items():
        wanted = _check_names_and_shapes(weights, backbone)
        renamed.update({f"{prefix}.{name}" if prefix else name: weights[name] for name in wanted})
    weights.clear()
    weights.update(renamed)
    return len(found)


def rename_torchvision_resnet(weights: dict[str, Any], model: nn.Module) -> int:
    """Rename the weights of a torchvision ResNet to the names in Detectron2's ResNets.

    The classifier is removed. Other weights, and models without such a ResNet, are not changed.
    torchvision's ResNets were trained on images with about zero mean and unit variance: for values
    of 0 to 255 this is a MODEL.PIXEL_STD of about 58, not Detectron2's 1.

    Args:
        weights: names to tensors; modified in place.
        model: the model, a detector or a backbone.

    Returns:
        The number of ResNets in the model if the weights are torchvision's, otherwise 0.

    Raises:
        ValueError: a ResNet differs from torchvision's: it has its strides in the 1 x 1
            convolutions, another normalization, or other blocks or widths.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, ResNet)}
    if not found or not all(name in weights for name in _OF_RESNET):
        return 0
    theirs = {}
    for name, value in weights.items():
        for pattern, new in _RESNET_NAMES:
            if re.fullmatch(pattern, name):
                name = re.sub(pattern, new, name)
                theirs[re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)] = value
                break
    renamed = {}
    for prefix, resnet in found.items():
        _check_resnet(theirs, resnet)
        names = (name for name in theirs if name.partition(".")[0] in _parts_of(resnet))
        renamed.update({f"{prefix}.{n}" if prefix else n: theirs[n] for n in names})
    weights.clear()
    weights.update(renamed)
    return len(found)


def _parts_of(resnet: ResNet) -> tuple[str, ...]:
    return ("stem", *resnet.stage_names)


def _check_resnet(weights: dict[str, Any], resnet: ResNet) -> None:
    """Check that a ResNet is equivalent to torchvision's ResNet with these weights."""
    block = resnet.res3[0] if "res3" in resnet.stage_names else resnet.res2[0]
    if hasattr(block, "conv3") and max(block.conv1.stride) > 1:
        raise ValueError(
            "found torchvision's ResNet, which has its strides in the 3 x 3 convolutions, expected "
            "MODEL.RESNETS.STRIDE_IN_1X1 False"
        )
    norm = resnet.stem.conv1.norm
    if not isinstance(norm, (FrozenBatchNorm2d, nn.modules.batchnorm._BatchNorm)):
        raise ValueError(
            "found torchvision's ResNet, expected batch normalization, such as "
            "MODEL.RESNETS.NORM FrozenBN"
        )
    state = resnet.state_dict()
    wanted = {name for name in state if not name.endswith(".num_batches_tracked")}
    given = {
        name
        for name in weights
        if name.partition(".")[0] in _parts_of(resnet) and not name.endswith("batches_tracked")
    }
    if wanted ^ given:
        name = min(wanted ^ given)
        where = "the model" if name in wanted else "the file"
        raise ValueError(
            f"found a torchvision ResNet with other blocks: {name} is only in {where}, and "
            f"{len(wanted ^ given) - 1} others; expected a ResNet of MODEL.RESNETS.DEPTH"
        )
    for name in sorted(wanted):
        found, expected = tuple(weights[name].shape), tuple(state[name].shape)
        if found != expected and not (
            name == "stem.conv1.weight" and _differ_in_slices(found, expected)
        ):
            raise ValueError(
                f"found {name} of shape {found} in torchvision's ResNet, expected {expected} "
                "(MODEL.RESNETS)"
            )


def _differ_in_slices(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return found[1] == 3 and (found[0], *found[2:]) == (expected[0], *expected[2:])


def _check_names_and_shapes(weights: dict[str, Any], backbone: nn.Module) -> list[str]:
    """The names that a backbone needs."""
    state = backbone.state_dict()
    wanted = [name for name in state if not name.endswith(".num_batches_tracked")]
    source = f"expected torchvision's {backbone.torchvision_name}"
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise ValueError(
            f"found no {', '.join(missing)} among its {len(weights)} names such as "
            f"{next(iter(weights))}, {source}"
        )
    others = [name for name in wanted if weights[name].shape != state[name].shape]
    if others:
        raise ValueError(
            f"found {others[0]} of shape {tuple(weights[others[0]].shape)}, expected "
            f"{tuple(state[others[0]].shape)}, and {len(others) - 1} others; {source}"
        )
    return wanted
