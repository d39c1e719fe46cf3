from . import deeplesion  # noqa: F401  (registers the data sets)
