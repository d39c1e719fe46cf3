"""Ordering of the slices of a DICOM series, and the position of their stack in the patient."""

from typing import NamedTuple

import numpy as np

from ..limits import check_size
from ..orientation import Turn, canonical_turn, turned_geometry
from ..stacking import StackPlan, plan_slices
from .frame import Frame, Unsuitable

_MAX_TILT = 0.2  # degrees; more is reported
_MAX_OBLIQUE = 5.0  # degrees
_MAX_SIDEWAYS = 0.5  # pixels
_SAME_PLACE = 0.005  # mm


class Stack(NamedTuple):
    """A stack that can be read.

    Args:
        frames: from superior to inferior, at distinct positions.
        plan: how the volume's slices are made.
        turn: from rows and columns of a frame to those of a slice.
        spacing, origin, direction: see :class:`~lesion_d2.scans.Scan`.
        messages: messages for the user, one line each.
    """

    frames: list[Frame]
    plan: StackPlan
    turn: Turn
    spacing: tuple[float, float, float]
    origin: np.ndarray
    direction: np.ndarray
    messages: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, H, W) of the volume."""
        rows, columns = self.frames[0].size
        size = (rows, columns) if self.turn.axes == (0, 1) else (columns, rows)
        return (len(self.plan.slices), *size)


def positions_along_normal(frames: list[Frame]) -> np.ndarray:
    """(N,) positions in mm along the normal of the first slice."""
    return np.array([frame.position for frame in frames]) @ _normal(frames[0])


def count_repeated(frames: list[Frame]) -> int:
    """Number of slices at the same position as another one."""
    return int((np.diff(np.sort(positions_along_normal(frames))) < _SAME_PLACE).sum())


def build_stack(frames: list[Frame], *, source: str, allow_gaps: bool) -> Stack:
    """Sort slices of one orientation and size by their position along the normal.

    Args:
        frames: in any order.
        source: beginning of messages.
        allow_gaps: see :func:`~lesion_d2.scans.read_scan`.

    Raises:
        Unsuitable: the slices are not axial.
        ValueError: their directions are not orthogonal unit vectors, or gaps are too large.
    """
    normal = _checked_normal(frames[0], source)
    frames = sorted(frames, key=lambda frame: (frame.instance_number, str(frame.stored)))
    frames.sort(key=lambda frame: float(np.dot(frame.position, normal)))
    frames, messages = _without_repeated(frames)
    step, sideways = _step(frames, normal)
    turn = _axial_turn(frames[0], step, source)
    if turn.flips[0]:  # superior first
        frames, step = frames[::-1], -step
        turn = _axial_turn(frames[0], step, source)
    plan = plan_slices(
        np.dot([frame.position for frame in frames], normal) * (1 if step @ normal > 0 else -1),
        [_short_label(frame) for frame in frames],
        source=source,
        spacing=frames[0].thickness if len(frames) == 1 else None,
        allow_gaps=allow_gaps,
    )
    rows, columns = frames[0].size
    affine = _affine(frames[0], step * plan.spacing)
    shape = (len(plan.slices), rows, columns)
    check_size(source, shape)
    spacing, origin, direction = turned_geometry(affine, shape, turn)
    messages += plan.messages + _directions_told(frames[0], normal, step, sideways)
    in_plane = Turn(tuple(axis - 1 for axis in turn.axes[1:]), turn.flips[1:])
    return Stack(frames, plan, in_plane, spacing, origin, direction, messages)


def _normal(frame: Frame) -> np.ndarray:
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    return normal / (np.linalg.norm(normal) or 1.0)


def _checked_normal(frame: Frame, source: str) -> np.ndarray:
    row, column = np.reshape(frame.orientation, (2, 3))
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > 1e-3 or abs(row @ column) > 1e-3:
        raise ValueError(
            f"{source}: found the Image Orientation (Patient) {frame.orientation}, expected two "
            "unit vectors at a right angle"
        )
    return _normal(frame)


def _without_repeated(frames: list[Frame]) -> tuple[list[Frame], tuple[str, ...]]:
    """Keep the first frame by instance number at each position."""
    normal = _normal(frames[0])
    kept, repeated = [], []
    for frame in frames:
        offset = np.subtract(frame.position, kept[-1].position) @ normal if kept else np.inf
        (kept if offset >= _SAME_PLACE else repeated).append(frame)
    if not repeated:
        return kept, ()
    return kept, (
        f"{len(repeated)} slices lie where another one does and are left out: "
        f"{_short_label(repeated[0])}, for one",
    )


def _step(frames: list[Frame], normal: np.ndarray) -> tuple[np.ndarray, float]:
    """The patient vector per 1 mm along the normal, and the maximum deviation from it in mm.

    It is the normal itself, unless a tilted gantry shifts each slice against the one before.
    """
    positions = np.array([frame.position for frame in frames])
    along = positions @ normal
    if len(frames) == 1:
        return normal, 0.0
    centered = along - along.mean()
    drift = centered @ (positions - positions.mean(axis=0)) / (centered @ centered)
    tilt = np.degrees(np.arccos(np.clip(1 / np.linalg.norm(drift), -1, 1)))
    step = drift if tilt > _MAX_TILT else normal
    beside = positions - positions.mean(axis=0) - np.outer(centered, step)
    return step, float(np.linalg.norm(beside, axis=1).max())


def _affine(frame: Frame, step: np.ndarray) -> np.ndarray:
    """4 x 4 affine matrix from slice, row and column to LPS in mm."""
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = np.multiply(frame.orientation[3:], frame.pixel_spacing[0])
    affine[:3, 2] = np.multiply(frame.orientation[:3], frame.pixel_spacing[1])
    affine[:3, 3] = frame.position
    return affine


def _axial_turn(frame: Frame, step: np.ndarray, source: str) -> Turn:
    try:
        turn = canonical_turn(_affine(frame, step))
    except ValueError as error:
        raise Unsuitable(f"{source}: {error}") from None
    if turn.axes[0] != 0:
        plane = "coronal" if turn.axes[1] == 0 else "sagittal"
        raise Unsuitable(f"{source}: found {plane} slices, expected axial ones")
    return turn


def _directions_told(frame, normal, step, sideways) -> tuple[str, ...]:
    """Messages on tilt, oblique slices and shifts."""
    lines = []
    tilt = np.degrees(np.arccos(np.clip(1 / np.linalg.norm(step), -1, 1)))
    if tilt > _MAX_TILT:
        lines.append(
            f"the gantry is tilted by {tilt:.1f} degrees: each slice is shifted against the one "
            "before, and kept as it is; places in mm take account of it"
        )
    oblique = np.degrees(np.arccos(np.clip(abs(normal[2]), -1, 1)))
    if oblique > _MAX_OBLIQUE:
        lines.append(f"the slices are {oblique:.1f} degrees off the axial plane")
    if sideways > _MAX_SIDEWAYS * min(frame.pixel_spacing):
        lines.append(f"slices are shifted sideways by up to {sideways:.1f} mm")
    return tuple(lines)


def _short_label(frame: Frame) -> str:
    name = (frame.stored.member or frame.stored.path).replace("\\", "/").rpartition("/")[2]
    return name if frame.index is None else f"{name} (frame {frame.index})"
