from .shape import VolumeShape

__all__ = ["VolumeShape"]
