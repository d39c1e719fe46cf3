from .det_unet import DetUNet
from .lesion_rcnn import LesionRCNN
from .mean_teacher import MeanTeacher
from .retina_unet import RetinaUNet
from .retinanet import LesionRetinaNet
from .rfcn_3dce import RFCN3DCE

__all__ = ["RFCN3DCE", "DetUNet", "LesionRCNN", "LesionRetinaNet", "MeanTeacher", "RetinaUNet"]
