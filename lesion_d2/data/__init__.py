from .deeplesion import (
    key_slices,  # noqa: F401  (registers the data sets)
    subvolumes,  # noqa: F401  (likewise)
)
from .phantoms import volumes  # noqa: F401  (likewise)
from .toys import images  # noqa: F401  (likewise)
from .volume_set import catalog  # noqa: F401  (likewise)
