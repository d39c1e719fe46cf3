"""Hit criteria of detections in 3-D: TEST.VOLUME_CRITERIA."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..matching import OVERLAPS


@dataclass(frozen=True)
class Criterion:
    """An overlap, see :func:`~lesion_d2.evaluation.matching.paired_overlaps`, and its threshold."""

    overlap: str  # iou | iobb | p3d
    threshold: float  # in (0, 1]; a hit has at least this overlap

    @classmethod
    def parse(cls, text: str) -> "Criterion":
        """Parse ``overlap@threshold``, such as "iobb@0.3".

        Raises:
            ValueError: an unknown overlap, or a threshold out of range.
        """
        overlap, _, number = text.partition("@")
        try:
            threshold = float(number)
        except ValueError:
            threshold = 0.0
        if overlap not in OVERLAPS or not 0 < threshold <= 1:
            raise ValueError(
                f"found {text!r}, expected overlap@threshold with one of {', '.join(OVERLAPS)} and "
                "a threshold in (0, 1]"
            )
        return cls(overlap, threshold)

    def __str__(self) -> str:
        return f"{self.overlap}@{self.threshold:g}"

    @property
    def needs_key_slices(self) -> bool:
        """Whether only boxes on key slices are compared."""
        return self.overlap == "p3d"

    @property
    def ap_name(self) -> str:
        """Name of the AP metric: AP10 at an IoU of 0.1 (Jaeger et al., section 4.3), or AP."""
        return "AP10" if (self.overlap, self.threshold) == ("iou", 0.1) else "AP"


def parse_criteria(texts: Sequence[str]) -> dict[str, Criterion]:
    """Parse TEST.VOLUME_CRITERIA.

    Returns:
        Task in the results -> criterion: "volume" for the first, "volume_<overlap>" for others.

    Raises:
        ValueError: no criterion, an invalid one, or two after the first with the same overlap.
    """
    if not texts:
        raise ValueError("found no criterion, expected at least one")
    first, *others = map(Criterion.parse, texts)
    criteria = {"volume": first}
    for criterion in others:
        task = f"volume_{criterion.overlap}"
        if task in criteria:
            raise ValueError(
                f"found {criteria[task]} and {criterion} after the first criterion, expected each "
                "overlap only once"
            )
        criteria[task] = criterion
    return criteria


def volume_metrics_of(
    criteria: Sequence[str], rates: Iterable[float], class_names: Sequence[str]
) -> list[str]:
    """All metrics of a :class:`~lesion_d2.evaluation.VolumeEvaluator`, as "task/metric".

    Args:
        criteria: TEST.VOLUME_CRITERIA.
        rates: TEST.VOLUME_FROC_RATES.
        class_names: of the data set.

    Raises:
        ValueError: see :func:`parse_criteria`.
    """
    suffixes = ["", *(f"-{name}" for name in class_names)] if len(class_names) > 1 else [""]
    froc = sensitivity_names(rates)
    names = []
    for task, criterion in parse_criteria(criteria).items():
        names += [f"{task}/{criterion.ap_name}{suffix}" for suffix in suffixes]
        names += [f"{task}/{name}" for name in froc]
    return names + [f"volume/patient_AP{suffix}" for suffix in suffixes]


def sensitivity_names(rates: Iterable[float]) -> list[str]:
    """Names of sensitivities, such as ``sens@0.5``, and of their mean, ``mean_sens``."""
    return [*(f"sens@{rate:g}" for rate in rates), "mean_sens"]
