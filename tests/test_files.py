from lesion_d2.files import one_line, read_json

import pytest


def test_json_is_read_or_told_of_in_one_line(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"ä": [1, null]}', encoding="utf-8")
    assert read_json(file, "numbers") == {"ä": [1, None]}
    for data in (b"", b"{", b"\xff\xfe", b"\x00", b"[" * 100_000):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.json: found no readable JSON \(.+\)$") as error:
            read_json(file, "numbers")
        assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.json: no such file, expected numbers$"):
        read_json(file, "numbers")


def test_one_line():
    assert one_line(ValueError("a\n  b\tc ")) == "a b c"
