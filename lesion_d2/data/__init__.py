from . import deeplesion, subvolumes, toys, volumes  # noqa: F401  (registers the data sets)
from .volume_set import catalog  # noqa: F401  (likewise)
