"""What reports and segmentations in DICOM have in common: codes, tracking, and what made them."""

from __future__ import annotations

import hashlib

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from ..finding import Algorithm, Finding, Findings

#: Of lesions that a detector reports: that something looks other than normal, and no more.
CATEGORY = codes.SCT.MorphologicallyAbnormalStructure
TYPE = codes.SCT.Lesion
#: Codes of this project, where the standard has none.
SCHEME, SCHEME_NAME = "99LESIOND2", "lesion_d2, universal lesion detection in CT"
METHODS = {
    "mask": Code("MASK", SCHEME, "Measured on the detector's masks"),
    "box": Code("BOX", SCHEME, "Estimated: ellipses in the detector's boxes"),
}
CLASS = Code("CLASS", SCHEME, "Class of the detector")
#: DeepLesion's types, as findings name them.
SITES = {
    "bone": codes.SCT.Bone,
    "abdomen": codes.SCT.Abdomen,
    "mediastinum": codes.SCT.Mediastinum,
    "liver": codes.SCT.Liver,
    "lung": codes.SCT.Lung,
    "kidney": codes.SCT.Kidney,
    "soft tissue": codes.SCT.SoftTissue,
    "pelvis": codes.SCT.Pelvis,
}
_LONG_STRING = 64  # characters of DICOM's VR LO, and of a code's meaning


def class_code(finding: Finding) -> Code:
    """The class of a finding as the detector names it."""
    return Code(f"CLASS_{finding.category_id}", SCHEME, cut(finding.category) or "unnamed")


def site(finding: Finding) -> Code | None:
    """Where a finding is, as far as its class says so."""
    return SITES.get(finding.category.replace("_", " ").lower())


def tracking(findings: Findings, finding: Finding, series_uid: str) -> tuple[str, str]:
    """Identifier and UID of a finding, the same wherever it is written.

    Args:
        findings: all of the scan.
        finding: one of them.
        series_uid: of the images.
    """
    algorithm = findings.algorithm
    identifier = f"Finding {finding.number}"
    sources = [series_uid, algorithm.version, algorithm.weights_sha256 or "", identifier]
    lesion = [repr(finding.box), finding.category, repr(finding.score)]
    return identifier, generate_uid(entropy_srcs=[*sources, *lesion])


def equipment(algorithm: Algorithm) -> dict[str, str]:
    """What made an object, by the names of highdicom's arguments."""
    return {
        "manufacturer": cut(algorithm.name),
        "manufacturer_model_name": cut(algorithm.meta_architecture or algorithm.name),
        "software_versions": cut(algorithm.version) or "unknown",
        "device_serial_number": model_digest(algorithm),
    }


def description(algorithm: Algorithm) -> str:
    """What a series or an object is, in one short line."""
    return f"{cut(algorithm.name)[:36]} findings, not a diagnosis"


def model_digest(algorithm: Algorithm) -> str:
    """64 hexadecimal digits that differ from one model to another."""
    text = algorithm.weights_sha256 or ""
    return text if len(text) == _LONG_STRING else hashlib.sha256(text.encode()).hexdigest()


def parameters(findings: Findings) -> dict[str, str]:
    """What the findings depend on. Of paths there is but the name."""
    algorithm, point = findings.algorithm.without_folders(), findings.operating_point
    found = {
        "config": algorithm.config_file,
        "meta_architecture": algorithm.meta_architecture,
        "weights": algorithm.weights,
        "weights_sha256": algorithm.weights_sha256,
        "score_threshold": f"{point.score_threshold:g}",
    }
    if point.rate is not None:
        found["operating_point"] = f"{point.rate:g} false positives per {point.unit}"
        found["operating_point_dataset"] = point.dataset
    return {name: value for name, value in found.items() if value}


def cut(text: str) -> str:
    """Text that DICOM's long strings can hold: printable, no backslash, 64 characters."""
    shown = "".join(c if c.isprintable() and c != "\\" else " " for c in text)
    return " ".join(shown.split())[:_LONG_STRING]
