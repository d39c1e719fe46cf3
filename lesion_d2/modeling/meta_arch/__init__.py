from .retina_unet import RetinaUNet

__all__ = ["RetinaUNet"]
