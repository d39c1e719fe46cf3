from .det_unet import DetUNet
from .lesion_rcnn import LesionRCNN
from .retina_unet import RetinaUNet

__all__ = ["DetUNet", "LesionRCNN", "RetinaUNet"]
