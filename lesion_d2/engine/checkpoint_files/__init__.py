"""Safe reading, checking and writing of weight files and checkpoints."""

from .folder import last_checkpoint, tag_checkpoint
from .formats import ENDINGS, FORMATS, read_file, write_file
from .pth import RefusedFile

__all__ = [
    "ENDINGS",
    "FORMATS",
    "RefusedFile",
    "last_checkpoint",
    "read_file",
    "tag_checkpoint",
    "write_file",
]
