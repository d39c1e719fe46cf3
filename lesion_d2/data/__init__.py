"""Data sets, reading, masks, augmentation, mappers and loaders."""

from .deeplesion import (
    key_slices,  # noqa: F401  (registers data sets)
    subvolumes,  # noqa: F401  (likewise)
)
from .phantoms import volumes  # noqa: F401  (likewise)
from .toys import on_demand  # noqa: F401  (likewise, on first use)
from .volume_set import catalog  # noqa: F401  (likewise)
