from . import deeplesion, toys, volumes  # noqa: F401  (registers the data sets)
