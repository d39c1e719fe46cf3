"""Meta-architectures."""

from .det_unet import DetUNet
from .det_unet_3d import DetUNet3D
from .lesion_rcnn import LesionRCNN
from .lesion_rcnn_3d import LesionRCNN3D
from .mean_teacher import MeanTeacher
from .retina_unet import RetinaUNet
from .retina_unet_3d import RetinaNet3D, RetinaUNet3D
from .retinanet import LesionRetinaNet
from .rfcn_3dce import RFCN3DCE
from .volumetric import VolumetricDetector

__all__ = [
    "RFCN3DCE",
    "DetUNet",
    "DetUNet3D",
    "LesionRCNN",
    "LesionRCNN3D",
    "LesionRetinaNet",
    "MeanTeacher",
    "RetinaNet3D",
    "RetinaUNet",
    "RetinaUNet3D",
    "VolumetricDetector",
]
