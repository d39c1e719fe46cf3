from lesion_d2.scans.names import safe_name, unique_names

import pytest


@pytest.mark.parametrize("text", ["a" * 99 + "._b", "x" * 300, "..--", "", "../a b/ü.nii", "-a-"])
def test_safe_names_stay_as_they_are(text):
    name = safe_name(text)
    assert safe_name(name) == name and 0 < len(name) <= 100


def test_numbered_names_are_unique_and_safe():
    names = unique_names(["a", "A", "a", "a_2", *["x" * 100] * 12], taken=["A_3"])
    assert names[:4] == ["a", "A_2", "a_4", "a_2_2"]
    assert len({name.lower() for name in names}) == len(names)
    assert names == [safe_name(name) for name in names]
