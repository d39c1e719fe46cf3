"""Batches at inference."""

from torch import nn


class OneSizeBatches(nn.Module):
    """Runs a detector on the images of a batch in groups of the same size.

    In a batch of mixed sizes, Detectron2 pads the smaller images to the largest size. Convolutions
    then see different values beyond an image's border than without a batch, and boxes near the
    border and their scores change by more than rounding errors.

    Args:
        model: a Detectron2 model with inputs ``image`` (C, H, W).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """The detector's output for each image, in the order of the batch."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, sample in enumerate(batched_inputs):
            groups.setdefault(tuple(sample["image"].shape), []).append(index)
        outputs: dict[int, dict] = {}
        for indices in groups.values():
            found = self.model([batched_inputs[index] for index in indices])
            outputs.update(zip(indices, found, strict=True))
        return [outputs[index] for index in range(len(batched_inputs))]
