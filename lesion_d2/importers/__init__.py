"""Public formats of annotated images, each read into a volume set."""

from .case import Case, ImportedVolume, Listing

__all__ = ["Case", "ImportedVolume", "Listing"]
