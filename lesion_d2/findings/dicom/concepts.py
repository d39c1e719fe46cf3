"""Shared by DICOM reports and segmentations: codes, tracking identifiers, equipment."""

from __future__ import annotations

import hashlib

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from ..finding import Algorithm, Finding, Findings

#: Finding code of detected lesions: only that something looks abnormal.
CATEGORY = codes.SCT.MorphologicallyAbnormalStructure
TYPE = codes.SCT.Lesion
#: This project's codes, for concepts without a standard code.
SCHEME, SCHEME_NAME = "99LESIOND2", "lesion_d2, universal lesion detection in CT"
METHODS = {
    "mask": Code("MASK", SCHEME, "Measured on the detector's masks"),
    "box": Code("BOX", SCHEME, "Estimated: ellipses in the detector's boxes"),
}
CLASS = Code("CLASS", SCHEME, "Class of the detector")
#: Codes of DeepLesion's types, by their names in findings.
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
_LONG_STRING = 64  # maximum length of DICOM's VR LO and of a code's meaning


def class_code(finding: Finding) -> Code:
    """The detector's class of a finding, as a code."""
    return Code(f"CLASS_{finding.category_id}", SCHEME, cut(finding.category) or "unnamed")


def site(finding: Finding) -> Code | None:
    """The anatomic site of a finding, if its class implies one."""
    return SITES.get(finding.category.replace("_", " ").lower())


def tracking(findings: Findings, finding: Finding, series_uid: str) -> tuple[str, str]:
    """Tracking identifier and UID of a finding, the same in all objects.

    Args:
        findings: all findings of the scan.
        finding: one of them.
        series_uid: Series Instance UID of the images.
    """
    algorithm = findings.algorithm
    identifier = f"Finding {finding.number}"
    sources = [series_uid, algorithm.version, algorithm.weights_sha256 or "", identifier]
    lesion = [repr(finding.box), finding.category, repr(finding.score)]
    return identifier, generate_uid(entropy_srcs=[*sources, *lesion])


def equipment(algorithm: Algorithm) -> dict[str, str]:
    """Manufacturer, model and so on of an object, as keyword arguments of highdicom."""
    return {
        "manufacturer": cut(algorithm.name),
        "manufacturer_model_name": cut(algorithm.meta_architecture or algorithm.name),
        "software_versions": cut(algorithm.version) or "unknown",
        "device_serial_number": model_digest(algorithm),
    }


def description(algorithm: Algorithm) -> str:
    """One-line description of a series or an object."""
    return f"{cut(algorithm.name)[:36]} findings, not a diagnosis"


def model_digest(algorithm: Algorithm) -> str:
    """64 hexadecimal digits that identify the model."""
    text = algorithm.weights_sha256 or ""
    return text if len(text) == _LONG_STRING else hashlib.sha256(text.encode()).hexdigest()


def parameters(findings: Findings) -> dict[str, str]:
    """Parameters of the algorithm; paths are reduced to file names."""
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
    """Truncate text for a DICOM long string: printable, no backslash, 64 characters."""
    shown = "".join(c if c.isprintable() and c != "\\" else " " for c in text)
    return " ".join(shown.split())[:_LONG_STRING]
