"""Config files in YAML, up to where a run would begin."""

from pathlib import Path

from lesion_d2.engine import load_config
from lesion_d2.engine.checks import check_inputs

import numpy as np
import tiny_run
import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from ..case import REFUSED, Case, Kind
from ..damage import STRANGE
from ..runs import DATASET, prepare, set_files, use_sets_of
from ..sandbox import CANARY

_RUN = f"touch {CANARY}"
_OPEN = f"open({CANARY!r}, 'w')"


def _tree() -> dict:
    return {
        "_BASE_": str(tiny_run.CONFIG),
        "MODEL": {"DEVICE": "cpu", "RESNETS": {"NORM": ""}, "FPN": {"NORM": ""}},
        "DATASETS": {"TRAIN": [DATASET], "TEST": []},
        "SOLVER": {"BASE_LR": 0.001, "MAX_ITER": 4, "STEPS": [], "IMS_PER_BATCH": 2},
        "INPUT": {"CT": {"IMAGE_SIZE": 64}, "PSEUDO_MASK": "ellipse"},
        "DATALOADER": {"NUM_WORKERS": 0},
        "TEST": {"EVAL_PERIOD": 0, "NUM_BOOTSTRAP": 0},
    }


def read(folder: Path) -> list:
    """What a run takes of it."""
    return _start(folder, ["--config-file", str(folder / "config.yaml")])


def _start(folder: Path, arguments: list[str]) -> list:
    prepare()
    use_sets_of(folder)
    output = ["OUTPUT_DIR", str(folder / "output")]
    args = default_argument_parser().parse_args([*arguments, *output])
    cfg = load_config(args)
    check_inputs(cfg, args)
    return _digest(cfg)


def _digest(cfg: CfgNode) -> list:
    return [cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, list(cfg.DATASETS.TRAIN), cfg.MODEL.DEVICE]


_VALUE = [0.001, 4, [DATASET], "cpu"]


def _case(name: str, text: str | bytes | dict, more: dict | None = None, **options) -> Case:
    if isinstance(text, dict):
        text = yaml.safe_dump(text)
    content = text if isinstance(text, bytes) else text.encode()
    files = {"config.yaml": content, **(more or {}), **set_files()}
    return Case(name, files, read, **options)


def _with(path: str, value: object) -> dict:
    tree = _tree()
    *parents, last = path.split(".")
    node = tree
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = value
    return tree


_TAGS = (
    f'!!python/object/apply:os.system ["{_RUN}"]',
    f'!!python/object/apply:subprocess.check_output [["touch", "{CANARY}"]]',
    f'!!python/object/apply:eval ["{_OPEN}"]',
    f'!!python/object/apply:exec ["{_OPEN}"]',
    f'!!python/object/new:os.system ["{_RUN}"]',
    f'!!python/object/apply:builtins.open ["{CANARY}", "w"]',
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!!python/object:lesion_d2.data.formats.problems.ProblemsError {}",
    "!!python/tuple [1, 2]",
)
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
_TEXTS = (
    ("empty", ""),
    ("only a comment", "# nothing\n"),
    ("a list", "- MODEL\n"),
    ("text", "MODEL\n"),
    ("a number", "5\n"),
    ("null", "null\n"),
    ("a number as a key", "5: x\n"),
    ("null as a key", "null: x\n"),
    ("a list as a key", "[1, 2]: x\n"),
    ("a key of MODEL that is a number", "MODEL:\n  5: x\n"),
    ("a recursive alias", "MODEL: &a\n  DEVICE: *a\n"),
    ("a recursive list", "DATASETS:\n  TRAIN: &a [*a]\n"),
    ("an alias bomb", _BOMB),
    ("an alias bomb as a value", _BOMB + "DATASETS:\n  TRAIN: *i\n"),
    ("10,000 brackets", "MODEL: " + "[" * 10_000 + "\n"),
    ("10,000 nested lists", "MODEL: " + "[" * 10_000 + "]" * 10_000 + "\n"),
    ("a tab", "MODEL:\n\tDEVICE: cpu\n"),
    ("two documents", "MODEL: {}\n---\nMODEL: {}\n"),
    ("an unknown anchor", "MODEL: *x\n"),
    ("a number of 10,000 digits", "SOLVER:\n  MAX_ITER: " + "9" * 10_000 + "\n"),
    ("a number in base 60", "SOLVER:\n  BASE_LR: 190:20:30\n"),
    ("a merge of itself", "MODEL: &a\n  <<: *a\n"),
)
_VALUES = (
    ("SOLVER.BASE_LR", (float("nan"), -1.0, float("inf"), "x", None, [])),
    ("SOLVER.MAX_ITER", (-1, "x", 1.5, None, 10**30)),
    ("SOLVER.IMS_PER_BATCH", (0, -2, "x", None)),
    ("DATASETS.TRAIN", ([5], 5, "x", [None], [[]], [], {})),
    ("VERSION", ("x", None, 99, [])),
    ("MODEL.DEVICE", ("nope", 5, None, "cuda:x")),
    ("MODEL.META_ARCHITECTURE", ("x", 5, None)),
    ("MODEL.WEIGHTS", ("absent.pth", 5)),
    ("INPUT.CT.IMAGE_SIZE", (-1, "x", None, 10**9)),
    ("SEED", ("x", None, 2**32)),
    ("UNKNOWN", (1,)),
    ("MODEL.UNKNOWN", (1,)),
    ("MODEL", (5, None, [], "x")),
)


def known() -> list[Case]:
    """What was found."""
    good = yaml.safe_dump(_tree())
    cases = [_case("as it should be", good, expected=_VALUE)]
    for tag in _TAGS:
        short = tag.split(" ")[0]
        cases.append(_case(f"MODEL: {short}", f"MODEL: {tag}\n"))
        cases.append(_case(f"a key: {short}", f"? {tag}\n: x\n"))
    base = {"bad.yaml": f"MODEL: {_TAGS[0]}\n".encode()}
    cases += [
        _case("a base that runs", {**_tree(), "_BASE_": "bad.yaml"}, base),
        _case("its own base", "_BASE_: config.yaml\n"),
        _case(
            "two that are each other's base",
            "_BASE_: b.yaml\n",
            {"b.yaml": b"_BASE_: config.yaml\n"},
        ),
        _case("a base that is not there", "_BASE_: absent.yaml\n"),
        _case("a base of zero bytes", "_BASE_: b.yaml\n", {"b.yaml": bytes(20)}),
        _case("no UTF-8", good.encode() + b"# \xff\n"),
        _case("UTF-16", good.encode("utf-16"), expected=_VALUE, may_refuse=True),
        _case("zero bytes", bytes(30)),
        _case(
            "a byte order mark", b"\xef\xbb\xbf" + good.encode(), expected=_VALUE, may_refuse=True
        ),
        Case("a folder", {"config.yaml/x": b"", **set_files()}, read),
    ]
    for base_value in (5, None, {}, ["config.yaml"], [5], True, 1.5, ""):
        cases.append(_case(f"_BASE_ {base_value!r}", {**_tree(), "_BASE_": base_value}))
    for name, text in _TEXTS:
        cases.append(_case(name, text))
        cases.append(_case(f"a base of {name}", "_BASE_: b.yaml\n", {"b.yaml": text.encode()}))
    for path, values in _VALUES:
        key = path.partition(".")[0]
        cases += [_case(f"{path} {str(v)[:20]!r}", _with(path, v), place=key) for v in values]
    return cases


def draw(rng: np.random.Generator) -> Case:
    """A key of the config that is strange or unknown, or a damaged file."""
    if rng.random() < 0.5:
        path, _ = _VALUES[int(rng.integers(len(_VALUES) - 1))]
        value = STRANGE[int(rng.integers(len(STRANGE)))]
        if (path, value) in _ACCEPTED or value is True or value == 1e29:
            value = {"size": 5}
        return _case(
            f"{path} = {str(value)[:20]!r}", _with(path, value), place=path.partition(".")[0]
        )
    good = yaml.safe_dump(_tree())
    lines = good.splitlines(keepends=True)
    number = int(rng.integers(len(lines)))
    junk = ("\t", "[", "}", "&a ", "*a ", "!!python/x ", ": ", "%", "\x00", "'", "@", "`")
    piece = junk[int(rng.integers(len(junk)))]
    place = int(rng.integers(len(lines[number])))
    line = lines[number][:place] + piece + lines[number][place:]
    text = "".join([*lines[:number], line, *lines[number + 1 :]])
    expected = REFUSED
    try:
        if yaml.load(text, _Loader) == yaml.safe_load(good):
            expected = _VALUE
    except yaml.YAMLError:
        pass
    return _case(
        f"{piece!r} in line {number + 1}, column {place}",
        text,
        expected=expected,
        may_refuse=True,
        places=_KEYS,
    )


# A tab behind a value is none to libyaml's parser, and an error to Python's.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KEYS = tuple(f"{key}{end}" for key, value in _tree().items() for end in (":", ".") if value)
# What a key takes though it looks strange.
_ACCEPTED = (("SEED", -1), ("MODEL.WEIGHTS", ""), ("MODEL.DEVICE", ""))
KIND = Kind("YAML", known, draw)
