import os
from pathlib import Path

from lesion_d2.utils.files import locked
from lesion_d2.utils.shards import WHOLE, Shard, joining, parse_shard

import pytest


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_every_item_is_in_one_part(count):
    parts = [parse_shard(f"{i}/{count}").of(range(7)) for i in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    "text", ["", "0/2", "3/2", "1/0", "-1/2", "1", "1/2/3", "1.0/2", "\u00b2/3"]
)
def test_what_is_no_part_is_refused(text):
    with pytest.raises(ValueError, match="expected I/N such as 1/4"):
        parse_shard(text)


def test_one_call_joins_at_a_time(tmp_path: Path):
    file, part = tmp_path / "lock", Shard(2, 3)
    with joining(file, part) as first, joining(file, part) as second:
        assert first and not second
    with joining(file, part) as third:
        assert third
    with locked(file), joining(file, WHOLE) as whole:  # which holds it already
        assert whole


def test_a_part_has_its_own_file(tmp_path: Path):
    assert Shard(2, 3).file(tmp_path / "a") == f"{os.fspath(tmp_path / 'a')}.2-of-3"
    assert WHOLE.file("a") == "a"
