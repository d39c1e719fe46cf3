"""Weight files from the model zoos of other projects."""

from typing import Any

from ...data.formats.restricted_pickle import load_pickle
from .pth import RefusedFile, read_pth


def read_zoo(path: str) -> dict[str, Any]:
    """Read a ``.pkl`` of Detectron2's model zoo, or of Caffe2 (Detectron).

    Raises:
        RefusedFile: see :func:`~lesion_d2.data.formats.restricted_pickle.load_pickle`.
        ValueError: it is not a readable pickle, or has no named weights.
    """
    try:
        data = load_pickle(path)
    except ValueError as error:
        text = str(error).removeprefix(f"{path}: ")
        raise (ValueError if "no readable pickle" in text else RefusedFile)(text) from None
    if not isinstance(data, dict):
        raise ValueError(f"found a {type(data).__name__}, expected named weights")
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)  # only detectors have "blobs"
    if not isinstance(blobs, dict):
        raise ValueError(f"found blobs of type {type(blobs).__name__}, expected named weights")
    weights = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def read_pyth(path: str) -> dict[str, Any]:
    """Read a ``.pyth`` of pycls.

    Raises:
        ValueError: see :func:`read_pth`; or it has no ``model_state``.
    """
    data = read_pth(path)
    if not isinstance(data, dict) or not isinstance(data.get("model_state"), dict):
        raise ValueError("found no 'model_state', expected one in a file of pycls")
    state = data["model_state"]
    weights = {k: v for k, v in state.items() if not str(k).endswith("num_batches_tracked")}
    return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
