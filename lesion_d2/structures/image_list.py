"""Batches of volumes."""

from collections.abc import Sequence

from detectron2.structures import ImageList
from torch import Tensor


class ImageList3D(ImageList):
    """Volumes of possibly different sizes in one tensor, as Detectron2's :class:`ImageList`.

    Args:
        tensor: (N, C, D, H, W).
        image_sizes: depth, height and width of each volume without padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int, int]]):
        super().__init__(tensor, image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """(C, D, H, W), a volume without padding."""
        depth, height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :depth, :height, :width]

    def to(self, *args, **kwargs) -> "ImageList3D":
        """The volumes on another device or of another type, see :meth:`torch.Tensor.to`."""
        return type(self)(self.tensor.to(*args, **kwargs), self.image_sizes)

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: Sequence[int] = (1, 1, 1),
        pad_value: float = 0.0,
    ) -> "ImageList3D":
        """Pad volumes at their ends to a common size.

        Args:
            tensors: one or more (C, D, H, W), with the same C.
            size_divisibility: the common depth, height and width are multiples of it.
            pad_value: value of the padding.

        Raises:
            ValueError: no volume, or shapes that are not (C, D, H, W) with the same C.
        """
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if not shapes or any(len(s) != 4 or s[0] != shapes[0][0] for s in shapes):
            raise ValueError(
                f"volumes: found shapes {shapes}, expected at least one of (C, D, H, W), all with "
                "the same C"
            )
        sizes = [shape[1:] for shape in shapes]
        common = [
            -(-max(sides) // multiple) * multiple
            for sides, multiple in zip(zip(*sizes, strict=True), size_divisibility, strict=True)
        ]
        if len(tensors) == 1 and list(sizes[0]) == common:
            return ImageList3D(tensors[0][None].contiguous(), sizes)
        batch = tensors[0].new_full((len(tensors), shapes[0][0], *common), pad_value)
        for padded, tensor, (depth, height, width) in zip(batch, tensors, sizes, strict=True):
            padded[:, :depth, :height, :width] = tensor
        return ImageList3D(batch, sizes)
