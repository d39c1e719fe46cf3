"""Labels and logits of anchors."""

from lesion_d2.modeling.losses import IGNORE

import torch


def random_anchors(num_logits, seed=0):
    """Logits and labels of three images: three positive anchors, two, and none."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 40, num_logits, generator=generator)
    labels = torch.full((3, 40), 2)  # two classes, so 2 is background
    labels[0, :3] = torch.tensor([0, 1, 1])
    labels[1, 5:7] = 0
    labels[:, 30:] = IGNORE
    return logits.requires_grad_(), labels
