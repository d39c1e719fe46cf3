"""Boxes in 3-D."""

import torch
from detectron2.structures import Boxes
from torch import Tensor


class Boxes3D(Boxes):
    """Boxes in volumes, with the interface of Detectron2's :class:`Boxes`.

    Integer coordinates are voxel centers on all three axes. The box of a mask extends from its
    first voxel - 0.5 to its last voxel + 0.5.

    Example::

        boxes = Boxes3D(torch.tensor([[9.5, 9.5, 1.5, 19.5, 29.5, 4.5]]))
        boxes.area()  # tensor([600.]): 10 x 20 pixels on 3 slices

    Args:
        tensor: (N, 6), x1, y1, z1, x2, y2, z2 in voxels.

    Raises:
        ValueError: the tensor is not (N, 6).
    """

    def __init__(self, tensor: Tensor):
        tensor = torch.as_tensor(tensor, dtype=torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 6)
        if tensor.dim() != 2 or tensor.shape[1] != 6:
            raise ValueError(f"boxes: found shape {tuple(tensor.shape)}, expected (N, 6)")
        self.tensor = tensor

    def clone(self) -> "Boxes3D":
        """A copy of the boxes."""
        return type(self)(self.tensor.clone())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Boxes3D":
        """The boxes on a device."""
        return type(self)(self.tensor.to(device=device, non_blocking=non_blocking))

    def sides(self) -> Tensor:
        """(N, 3) extents along x, y and z, voxels."""
        return self.tensor[:, 3:] - self.tensor[:, :3]

    def area(self) -> Tensor:
        """(N,) volumes in voxels. Named as in ``Boxes``, for code that takes either."""
        dx, dy, dz = self.sides().unbind(dim=1)
        return dx * dy * dz

    def clip(self, box_size: tuple[int, int, int]) -> None:
        """Clip the boxes in place to a volume: from -0.5 to its size - 0.5.

        Args:
            box_size: depth, height and width of the volume.

        Raises:
            ValueError: a number is not finite.
        """
        if not torch.isfinite(self.tensor).all():
            raise ValueError("boxes: found infinite values or NaN, expected finite numbers")
        columns = []
        for column, size in zip(self.tensor.unbind(dim=1), 2 * tuple(box_size)[::-1], strict=True):
            columns.append(column.clamp(min=-0.5, max=size - 0.5))
        self.tensor = torch.stack(columns, dim=1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool, whether all sides of a box are longer than a threshold in voxels."""
        return (self.sides() > threshold).all(dim=1)

    def __getitem__(self, item: int | slice | Tensor) -> "Boxes3D":
        """Index by integer, slice, mask or indices; the result may share memory."""
        if isinstance(item, int):
            return type(self)(self.tensor[item].view(1, -1))
        return type(self)(self.tensor[item])

    def __repr__(self) -> str:
        return f"Boxes3D({self.tensor})"

    def inside_box(self, box_size: tuple[int, int, int], boundary_threshold: float = 0.0) -> Tensor:
        """Which boxes lie inside of a volume.

        Args:
            box_size: depth, height and width of the volume.
            boundary_threshold: voxels by which a box may extend beyond each side.

        Returns:
            (N,) bool.
        """
        allowed = 0.5 + boundary_threshold
        inside = torch.ones(len(self), dtype=torch.bool, device=self.device)
        for axis, size in enumerate(tuple(box_size)[::-1]):
            inside &= self.tensor[:, axis] >= -allowed
            inside &= self.tensor[:, axis + 3] <= size - 1 + allowed
        return inside

    def get_centers(self) -> Tensor:
        """(N, 3) x, y and z of the centers, voxels."""
        return (self.tensor[:, :3] + self.tensor[:, 3:]) / 2

    def scale(self, scale_x: float, scale_y: float, scale_z: float = 1.0) -> None:
        """Scale the boxes in place, as for a volume resized by these factors.

        The volume's edge at -0.5 is fixed.
        """
        for axis, factor in enumerate((scale_x, scale_y, scale_z)):
            self.tensor[:, axis::3] = (self.tensor[:, axis::3] + 0.5) * factor - 0.5
