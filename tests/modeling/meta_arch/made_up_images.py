"""Images with lesions that a model can learn."""

import torch
from detectron2.structures import BitMasks, Boxes, Instances


def make_sample(boxes, classes, seed):
    """A noisy image with bright ellipses in boxes; class 1 is darker."""
    generator = torch.Generator().manual_seed(seed)
    image = 100 + 10 * torch.randn(3, 64, 64, generator=generator)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    masks = []
    for (x1, y1, x2, y2), category in zip(boxes, classes, strict=True):
        inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1
        image[:, inside] = 30.0 if category else 220.0
        masks.append(inside)
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.stack(masks) if masks else torch.zeros(0, 64, 64))
    return {"image": image, "instances": instances, "height": 64, "width": 64}


def make_disks(boxes, height=96, width=128, channels=3, classes=None, seed=0):
    """Noise with a bright disk in every box."""
    generator = torch.Generator().manual_seed(seed)
    image = 60 + 10 * torch.randn(channels, height, width, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[:] = (
            ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2
        ) <= 0.25
        image[:, mask] += 120
    instances.gt_masks = BitMasks(masks)
    return {"image": image, "instances": instances, "height": height, "width": width}
