from .lesion_rcnn import LesionRCNN
from .retina_unet import RetinaUNet

__all__ = ["LesionRCNN", "RetinaUNet"]
