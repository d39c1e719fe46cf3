from . import deeplesion, subvolumes, toys, volumes  # noqa: F401  (registers the data sets)
