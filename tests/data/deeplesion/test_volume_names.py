from lesion_d2.data.deeplesion.volume_names import VolumeName

import pytest


@pytest.mark.parametrize("ending", ["", ".annot", ".nii", ".nii.gz"])
def test_published_names_are_parsed_and_written_again(ending):
    name = VolumeName.parse(f"001344_01_01_012-024{ending}")
    assert str(name) == "001344_01_01_012-024" and name.series == "001344_01_01"
    assert name[2:] == (1344, 1, 1, 12, 24)


@pytest.mark.parametrize(
    "text",
    [
        None,
        5,
        "",
        "001344_01_01",
        "001344_01_01_024-012",
        "../001344_01_01_012-024",
        "/001344_01_01_012-024",
        "001344_01_01_012-024\n",
        "\u0661_01_01_012-024",  # digits of other scripts
        "1_1_1_1-\u0969",
        f"1_1_1_1-{'9' * 5000}",
        "1_1_1_0-49999999",
        "1_1_1_1-20001",
    ],
)
def test_what_is_no_name_or_promises_too_much(text):
    with pytest.raises(ValueError, match="found the volume ") as error:
        VolumeName.parse(text)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)
    assert VolumeName.parse("1_1_1_1-20000").last == 20_000
