from lesion_d2.config import read_yaml

import pytest
import yaml


def write(folder, text):
    file = folder / "a.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_values_are_pyyamls(tmp_path, monkeypatch, loader):
    if not hasattr(yaml, loader):
        pytest.skip("PyYAML without libyaml")
    monkeypatch.setattr("lesion_d2.config.yaml_files._Loader", getattr(yaml, loader))
    text = "a: {b: [1, 2.5, -.inf, yes, null, 'x y'], 5: 0x1F}\nc: &c {d: 1}\ne: {<<: *c, f: 2}\n"
    file = write(tmp_path, text)
    expected = {"a": {"b": [1, 2.5, float("-inf"), True, None, "x y"], 5: 31}}
    expected |= {"c": {"d": 1}, "e": {"d": 1, "f": 2}}
    assert read_yaml(file) == expected == yaml.safe_load(text)


def test_aliases_are_copies(tmp_path):
    content = read_yaml(write(tmp_path, "a: &a {b: [1]}\nc: *a\n"))
    content["a"]["b"].append(2)
    assert content == {"a": {"b": [1, 2]}, "c": {"b": [1]}}


def test_an_empty_file_holds_nothing(tmp_path):
    assert read_yaml(write(tmp_path, "# nothing\n")) is None


_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
_MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)
)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: &b [*b]", r"line 2: found the alias \*b, expected its anchor before it"),
        ("a: *b", r"line 1: found the alias \*b, expected its anchor"),
        (_BOMB, "line 1[5-7]: found more than 100000 values"),
        (_MERGES, "found more than 100000 values"),
        ("a: " + "[" * 10_000, "found more than 50 levels|exceeded maximum nesting depth"),
        ("- " * 10_000, "line 1: found more than 50 levels"),
        ("a: [1,\n2", "while parsing a flow sequence"),
        ("a: 1\na: 2", "line 2: found the key 'a' twice"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: " + ":".join(["59"] * 300) + ".5", "too large"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("? [a, b]\n: 1", "found unhashable key"),
        ("a: 1\n--- \nb: 2", "expected a single document"),
        ("a: !!str 5", "found the tag 'tag:yaml.org,2002:str'"),
        (b"a: \xff\xfe", "unacceptable|invalid"),
        (b"\x00" * 9, "control characters|unacceptable"),
    ],
)
def test_what_is_no_plain_yaml_is_one_line(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(file)
    assert str(error.value).startswith(f"{file}: found invalid YAML (")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "value",
    [
        '!!python/object/apply:os.system ["touch {}"]',
        '!!python/object/apply:eval [\'open("{}", "w")\']',
        '!!python/object/apply:exec [\'open("{}", "w")\']',
        '!!python/object/new:os.system ["touch {}"]',
        "!!python/name:os.system",
        "!<tag:yaml.org,2002:python/module:antigravity>",
        "!!python/tuple [1, 2]",
    ],
)
def test_no_code_is_run(tmp_path, value):
    canary = tmp_path / "canary"
    file = write(tmp_path, "a: " + value.replace("{}", str(canary)))
    with pytest.raises(ValueError, match=r"line 1: found the tag 'tag:yaml.org,2002:python/"):
        read_yaml(file)
    assert not canary.exists()


def test_a_file_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("lesion_d2.config.yaml_files.MAX_BYTES", 9)
    with pytest.raises(ValueError, match="found more than 9 bytes"):
        read_yaml(write(tmp_path, "a: 'bcdef'"))
