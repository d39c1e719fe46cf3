"""Batches at inference."""

from torch import nn


class OneSizeBatches(nn.Module):
    """Shows a detector the images of a batch that have one size together, and no others.

    In a batch of several sizes Detectron2 pads the smaller images to the size of the largest. What
    convolutions see beyond their borders is then no longer what it is alone, and boxes next to a
    border, and their scores, change by more than by rounding.

    Args:
        model: with Detectron2's interface; ``image`` of its inputs are (C, H, W).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """What the detector gives of each image, in the order of the batch."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, sample in enumerate(batched_inputs):
            groups.setdefault(tuple(sample["image"].shape), []).append(index)
        outputs: dict[int, dict] = {}
        for indices in groups.values():
            found = self.model([batched_inputs[index] for index in indices])
            outputs.update(zip(indices, found, strict=True))
        return [outputs[index] for index in range(len(batched_inputs))]
