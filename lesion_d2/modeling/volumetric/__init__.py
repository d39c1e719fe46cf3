from .anchor_generator import AnchorGenerator3D
from .box_regression import Box2BoxTransform3D
from .shape import VolumeShape

__all__ = ["AnchorGenerator3D", "Box2BoxTransform3D", "VolumeShape"]
