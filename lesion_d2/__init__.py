"""Universal lesion detection in CT as a Detectron2 project.

Importing the package makes ``detectron2`` importable, and registers the data sets and the models.
"""

import warnings

from ._programs import end_shortly_while_importing, uncollected

end_shortly_while_importing()

with uncollected(), warnings.catch_warnings():
    from ._detectron2 import ensure_detectron2

    ensure_detectron2()
    # fvcore, a dependency of Detectron2, still uses TorchScript; users cannot change that.
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
    from . import data, modeling
from .config import add_lesion_config, get_lesion_config  # noqa: E402

__all__ = ["add_lesion_config", "data", "get_lesion_config", "modeling"]
__version__ = "0.1.0"
