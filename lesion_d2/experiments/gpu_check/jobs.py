"""The measurements, the most important ones first."""

from collections.abc import Iterator
from dataclasses import dataclass

from .configs import (
    AS_IT_IS,
    CHANNELS_FIRST,
    COMPILED,
    FLOAT32,
    NOT_FUSED,
    SMALL,
    main_configs,
)

#: Estimated seconds of a job by kind, before one has been measured.
FIRST_GUESS = {"step": 15.0, "model": 12.0, "compiled": 90.0, "loader": 20.0, "volume": 15.0}
FIRST_GUESS |= {"optimizer": 5.0, "teacher": 5.0}
_COMPILED = 6  # models, of which each takes a minute
_LOADED = 8


@dataclass(frozen=True)
class Job:
    """One row of the table.

    Attributes:
        kind: "step" (of a small config, with its data), "model" (training and inference without a
            loader), "loader" (training with it), "volume" (inference), "optimizer" or "teacher".
        config: its name.
        setting: of :data:`~.configs.SETTINGS`.
    """

    kind: str
    config: str
    setting: str = AS_IT_IS.name

    @property
    def cost_kind(self) -> str:
        """A key of jobs that take about the same time."""
        return "compiled" if self.setting == COMPILED.name else self.kind


def steps() -> list[Job]:
    """A training step of every small config."""
    return [Job("step", name) for name in SMALL]


def plan() -> list[Job]:
    """The rows of models at full width: first all of them once, then with each setting."""
    return list(dict.fromkeys(_plan()))


def _plan() -> Iterator[Job]:
    names = main_configs()
    first, volumes = names[:16], [name for name in names if name.endswith("_3d")]
    yield from (Job("model", name) for name in first)
    yield from (Job("loader", name) for name in first[:_LOADED])
    yield from (Job("volume", name) for name in volumes[:1])
    yield from (Job("model", name, FLOAT32.name) for name in first)
    yield Job("teacher", "mean_teacher/add")
    yield Job("optimizer", "uldor/uldor")
    yield Job("optimizer", "retina_unet/retina_unet_R_50_deeplesion")
    yield Job("model", first[0], COMPILED.name)
    yield from (Job("volume", name) for name in volumes)
    yield from (Job("model", name, CHANNELS_FIRST.name) for name in first)
    yield from (Job("model", name) for name in names)
    yield from (Job("model", name, NOT_FUSED.name) for name in first[:_LOADED])
    yield from (Job("model", name, COMPILED.name) for name in first[:_COMPILED])
    yield from (Job("model", name, FLOAT32.name) for name in names)
    yield from (Job("loader", name) for name in names)
