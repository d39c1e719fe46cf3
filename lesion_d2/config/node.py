"""Detectron2's CfgNode with safe reading of untrusted files and command lines."""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.config.compat import guess_version
from detectron2.utils.file_io import PathManager

from ..utils.errors import short_repr
from .epochs import check_one_of_each, unset_epochs
from .keys import add_lesion_config, broadcast_pixel_values
from .old_keys import rename_in_file, rename_in_list, renamed_folder
from .yaml_files import read_yaml

_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_BASE = "_BASE_"
_MAX_BASES = 20
_ADDRESSES = ("http://", "https://")
# Lists of text that are empty by default.
_NAMES = {
    "INPUT.PSEUDO_MASK_FILES",
    "MODEL.FPN.IN_FEATURES",
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "DATASETS.EXCLUDED_VOLUMES",
    "TEST.ENSEMBLE.CHECKPOINTS",
    "HARD_NEGATIVES.DATASETS",
}
_NUMBERS = {"SOLVER.STEP_EPOCHS"}
_PAIRS = {"INPUT.CT.HU_WINDOW", "INPUT.AUG.RESIZE_RANGE"}
# Keys that only a dumped config has: it has both epochs and the iterations computed from them.
_WRITTEN = {"GLOBAL", "VIS_PERIOD"}
_REPEATED = "__repeated__"


def get_lesion_config() -> "LesionConfig":
    """Return the defaults of Detectron2 and of this project.

    Example:
        >>> cfg = get_lesion_config()
        >>> cfg.merge_from_file("configs/quickstart/retina_unet_phantom.yaml")
    """
    cfg = get_cfg()
    add_lesion_config(cfg)
    return LesionConfig(cfg)


class LesionConfig(CfgNode):
    """A CfgNode that runs no code from files, and checks the types of values against defaults.

    Detectron2's CfgNode calls Python functions that a file names; here files are read by
    :func:`read_yaml`. Values that would stop a run later are errors: ``None`` for a key with a
    value, NaN, and list entries that are text instead of numbers or the reverse.

    Old names of keys are accepted (:mod:`~lesion_d2.config.old_keys`), iterations replace the
    epochs of what they are merged over (:mod:`~lesion_d2.config.epochs`), and one value of
    MODEL.PIXEL_MEAN or PIXEL_STD is repeated for every slice, also where INPUT.CT.NUM_SLICES
    changes later. This applies to whole configs, not to single sections.
    """

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """As in Detectron2, but safe.

        Raises:
            OSError: the file, or one that it is based on, cannot be read.
            ValueError: a file is not YAML (see :func:`read_yaml`), or has keys that are not text;
                a ``_BASE_`` is not a path, or recursive; or a file has a key under two names, or
                both iterations and epochs. The message begins with the file.
        """
        _refuse_unsafe(allow_unsafe)
        return _Files().load(str(filename))

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """As in Detectron2, but safe; a file of an older VERSION is an error.

        Raises:
            KeyError: there is no such key.
            OSError, ValueError: as :meth:`load_yaml_with_base`; or a value cannot be used.
        """
        _refuse_unsafe(allow_unsafe)
        content = self.load_yaml_with_base(cfg_filename)
        _merge(cfg_filename, unset_epochs(f"{cfg_filename}: ", content, self), content)
        loaded = type(self)(content)
        _check_sections(self, loaded, "")
        version = loaded.get("VERSION")
        if version is None:
            version = guess_version(loaded, cfg_filename)
        if type(version) is not int or version != self.VERSION:
            raise ValueError(f"VERSION: found {short_repr(version)}, expected {self.VERSION}")
        with self._checked(loaded):
            self.merge_from_other_cfg(loaded)

    def merge_from_list(self, cfg_list: Sequence[str]) -> None:
        """As in Detectron2.

        Raises:
            AssertionError: a value is missing.
            KeyError: there is no such key.
            ValueError: a value cannot be used, or a key is given under two names, or in both
                iterations and epochs.
        """
        cfg_list = rename_in_list(cfg_list)
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=False):
            node = self
            for name in str(key).split("."):
                if not isinstance(node, CfgNode) or name not in node:
                    raise KeyError(f"Non-existent key: {key}")
                node = node[name]
            if isinstance(node, CfgNode):
                raise ValueError(f"{key}: found {short_repr(value)}, expected keys below it")
        given = _as_sections(cfg_list)
        with self._checked(given):
            check_one_of_each("", given)
            unset = unset_epochs("", given, self, logging.WARNING)
            super().merge_from_list(cfg_list)
            self.merge_from_other_cfg(type(self)(unset))

    def dump(self, **kwargs: Any) -> str:
        """As in Detectron2, but with libyaml if available, which is faster."""
        return yaml.dump(_plain(self), Dumper=_Dumper, **kwargs)

    @contextmanager
    def _checked(self, given: Mapping[str, Any]) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RecursionError):  # from Python's parser, which yacs uses
            raise ValueError("found a value with too many nested levels, expected fewer") from None
        _check_kinds(self, _defaults(), "")
        if "MODEL" in self and "INPUT" in self:
            self._broadcast(given.get("MODEL", {}))

    def _broadcast(self, given: Mapping[str, Any]) -> None:
        for key, values in self.__dict__.get(_REPEATED, {}).items():
            if key not in given and list(self.MODEL[key]) == values:  # perhaps for fewer slices
                self.MODEL[key] = values[:1]
        self.__dict__[_REPEATED] = broadcast_pixel_values(self)


@cache
def _defaults() -> CfgNode:
    return get_lesion_config()


def _refuse_unsafe(allow_unsafe: bool) -> None:
    if allow_unsafe:
        raise ValueError("found allow_unsafe=True, expected False: configs cannot run code")


def _as_sections(pairs: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Alternating keys and values, as in a file; without those of nested sections."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=False):
        section, _, name = str(key).partition(".")
        sections.setdefault(section, {})[name] = value
    return sections


def _plain(node: CfgNode) -> dict[str, Any]:
    return {k: _plain(v) if isinstance(v, CfgNode) else v for k, v in node.items()}


class _Files:
    """A file and its bases, each of which is read once."""

    def __init__(self):
        self._done: dict[str, dict] = {}
        self._begun: dict[str, str] = {}

    def load(self, file: str) -> dict[str, Any]:
        """Load a file with its bases; returns a new dict."""
        place = os.path.realpath(file)
        if place in self._begun:
            last = [*self._begun.values()][-1]
            raise ValueError(f"{last}: {_BASE}: found {file}, which is based on it")
        if len(self._begun) == _MAX_BASES:
            raise ValueError(
                f"{file}: {_BASE}: found more than {_MAX_BASES} nested files, expected fewer"
            )
        if place not in self._done:
            self._begun[place] = file
            self._done[place] = self._read(file)
            del self._begun[place]
        return _copied(self._done[place])

    def _read(self, file: str) -> dict[str, Any]:
        if not file.startswith(_ADDRESSES) and not os.path.isfile(file):
            message = f"{file}: does not exist, expected a config file"
            raise FileNotFoundError(message + renamed_folder(file))
        content = read_yaml(PathManager.get_local_path(file))
        if not isinstance(content, dict):
            found = "nothing" if content is None else short_repr(content)
            raise ValueError(f"{file}: found {found}, expected keys such as MODEL")
        _check_keys(file, content)
        rename_in_file(file, content)
        if not content.keys() >= _WRITTEN:
            check_one_of_each(f"{file}: ", content)
        if _BASE not in content:
            return content
        merged: dict[str, Any] = {}
        bases = content.pop(_BASE)
        bases = bases if isinstance(bases, list) else [bases]
        if len(bases) > _MAX_BASES:
            raise ValueError(
                f"{file}: {_BASE}: found {len(bases)} files, expected at most {_MAX_BASES}"
            )
        for base in bases:
            if not isinstance(base, str) or not base:
                raise ValueError(
                    f"{file}: {_BASE}: found {short_repr(base)}, expected a file's path"
                )
            base = os.path.expanduser(base)
            if not base.startswith(("/", *_ADDRESSES)):
                base = os.path.join(os.path.dirname(file), base)
            _merge_later(file, self.load(base), merged)
        _merge_later(file, content, merged)
        return merged


def _copied(content: dict[str, Any]) -> dict[str, Any]:
    """Copy nested dicts; other values are shared, as they are never modified."""
    return {k: _copied(v) if isinstance(v, dict) else v for k, v in content.items()}


def _check_keys(file: str, content: Mapping, prefix: str = "") -> None:
    for key, value in content.items():
        if not isinstance(key, str):
            where = f"{file}: {prefix.rstrip('.')}".rstrip(" :")
            raise ValueError(
                f"{where}: found the key {short_repr(key)}, expected text such as MODEL"
            )
        if isinstance(value, dict):
            _check_keys(file, value, f"{prefix}{key}.")


def _merge(file: str, content: Mapping, merged: dict[str, Any], prefix: str = "") -> None:
    """Merge a file into its bases."""
    for key, value in content.items():
        if isinstance(value, dict) and key in merged:
            if not isinstance(merged[key], dict):
                raise ValueError(
                    f"{file}: {prefix}{key}: found keys, expected a value as in {_BASE}, such as "
                    f"{short_repr(merged[key])}"
                )
            _merge(file, value, merged[key], f"{prefix}{key}.")
        else:
            merged[key] = value


def _merge_later(file: str, content: Mapping, merged: dict[str, Any]) -> None:
    _merge(file, unset_epochs(f"{file}: ", content, merged), merged)
    _merge(file, content, merged)


def _check_sections(cfg: CfgNode, loaded: Mapping, prefix: str) -> None:
    """Check sections; the message of yacs would contain all keys below."""
    for name, value in loaded.items():
        if not isinstance(cfg.get(name), CfgNode):
            continue
        if not isinstance(value, Mapping):
            raise ValueError(f"{prefix}{name}: found {short_repr(value)}, expected keys below it")
        _check_sections(cfg[name], value, f"{prefix}{name}.")


def _check_kinds(cfg: CfgNode, defaults: CfgNode, prefix: str) -> None:
    """Check types of values; keys that other projects have added are not checked."""
    for name, value in cfg.items():
        if name not in defaults:
            continue
        key, old = f"{prefix}{name}", defaults[name]
        if isinstance(value, CfgNode) and isinstance(old, CfgNode):
            _check_kinds(value, old, f"{key}.")
            continue
        if value is None and old is not None:
            raise ValueError(f"{key}: found None, expected a value such as {short_repr(old)}")
        kinds = {_kind(entry) for entry in _entries(value)}
        if "NaN" in kinds:
            raise ValueError(f"{key}: found {short_repr(value)}, expected no NaN")
        if (key in _NAMES | _NUMBERS or _levels(old) == 1) and _levels(value) > 1:
            raise ValueError(
                f"{key}: found {short_repr(value)}, expected a list without nested lists"
            )
        if key in _PAIRS and len(value) != 2:
            raise ValueError(f"{key}: found {short_repr(value)}, expected two numbers")
        expected = _kinds_of(key, old)
        if isinstance(value, list | tuple) and len(expected) == 1 and not kinds <= expected:
            raise ValueError(
                f"{key}: found {short_repr(value)}, expected a list of {min(expected)}"
            )


def _kinds_of(key: str, old: Any) -> set[str]:
    if key in _NAMES:
        return {"texts"}
    return {"numbers"} if key in _NUMBERS else {_kind(entry) for entry in _entries(old)}


def _entries(value: Any) -> Iterator[Any]:
    """The values in nested lists, or a value itself."""
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _entries(entry)
    else:
        yield value


def _levels(value: Any) -> int:
    """Depth of nested lists; 0 for a value and an empty list."""
    if not isinstance(value, list | tuple) or not value:
        return 0
    return 1 + max(map(_levels, value))


def _kind(value: Any) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, int | float):
        return "numbers"
    return "texts" if isinstance(value, str) else type(value).__name__
