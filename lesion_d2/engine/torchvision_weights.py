"""``MODEL.WEIGHTS: torchvision://vgg19``, and files of torchvision's weights for our backbones."""

import os
import re
from http.client import HTTPException
from typing import IO, Any

import torch
import torchvision
from detectron2.utils.file_io import PathHandler, PathManager
from torch import nn

PREFIX = "torchvision://"
# Names in torchvision's files of DenseNets, from when a module's name could have a dot.
_OLD_DENSENET_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)")


class TorchvisionHandler(PathHandler):
    """Resolves ``torchvision://<model>`` to the file of torchvision's default weights of it.

    The file lies where torchvision itself looks for it (``$TORCH_HOME/hub/checkpoints``), and is
    downloaded where it is not there.
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
            # The part of the name after its last dash begins the file's SHA-256.
            checksum = file.rpartition("-")[2].partition(".")[0]
            try:
                torch.hub.download_url_to_file(url, file, hash_prefix=checksum)
            except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: wrong checksum
                raise FileNotFoundError(
                    f"{path}: found no file {file}, and no whole one at {url} ({error})"
                ) from error
        return file

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return os.path.isfile(self._get_local_path(path))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return open(self._get_local_path(path), mode, buffering=buffering)


PathManager.register_handler(TorchvisionHandler())


def rename_torchvision_weights(weights: dict[str, Any], model: nn.Module) -> int:
    """Give torchvision's weights the names that they have in a model on torchvision's backbones.

    Such a backbone says by ``torchvision_name`` whose names it uses. What it does not have, such as
    the classifier, is left out. The old names in the files of DenseNets become today's, as when
    torchvision itself reads them. Weights that bear the model's own names already, and models on
    other backbones, are left as they are.

    Args:
        weights: names to tensors; changed in place.
        model: what they are for, a detector or a bare backbone.

    Returns:
        How many such backbones the model has.

    Raises:
        ValueError: a backbone has parameters that ``weights`` lack or have in another shape; names
            them.
    """
    found = {name: m for name, m in model.named_modules() if hasattr(m, "torchvision_name")}
    tops = {name.partition(".")[0] for name in found}
    # A detector's checkpoint, perhaps of DistributedDataParallel.
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
            f"{tuple(state[others[0]].shape)}, and {len(others) - 1} more such; {source}"
        )
    return wanted
