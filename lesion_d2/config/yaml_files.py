"""Safe reading of untrusted YAML files, in bounded time and memory."""

import os

import yaml

from ..utils.errors import short_repr
from ..utils.files import one_line

# libyaml's parser, if PyYAML was built with it, is ten times faster, with the same result.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Maximum size of a YAML file.
MAX_BYTES = 2**24
_MAX_NODES = 100_000
_MAX_DEPTH = 50


def read_yaml(file: str | os.PathLike) -> object:
    """Read a YAML file as data: text, numbers, dates, lists and dicts.

    It cannot run code: tags such as ``!!python/...`` are an error. Each alias is read as a separate
    copy.

    Args:
        file: its path, which is used in messages.

    Returns:
        The content; None if the file is empty.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML, or has a tag, a duplicate key, a recursive alias, more than 16
            MiB, or, with aliases expanded, more than 100,000 values or 50 levels; the message has
            the line.
    """
    with open(file, "rb") as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{file}: found more than {MAX_BYTES} bytes, expected a smaller YAML file")
    try:
        _Walk().through(content)
        return _copied(yaml.load(content, Loader=_Loader))
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{file}: found invalid YAML ({one_line(error)})") from None


class _Walk:
    """Checks a file's parser events before constructing objects.

    For every open collection it counts nodes and levels, and stores a mapping's keys.
    """

    def __init__(self):
        self.open: list[_Collection] = [_Collection("")]
        self.anchors: dict[str, tuple[int, int]] = {}

    def through(self, content: bytes) -> None:
        """Check a file's text.

        Raises:
            yaml.YAMLError: it is not YAML.
            ValueError: see :func:`read_yaml`.
        """
        for event in yaml.parse(content, Loader=_Loader):
            try:
                self._take(event)
            except ValueError as error:
                raise ValueError(f"line {event.start_mark.line + 1}: {error}") from None

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.CollectionEndEvent):
            ended = self.open.pop()
            if ended.anchor:
                self.anchors[ended.anchor] = ended.nodes, ended.levels
            self._add(None, ended.nodes, ended.levels)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise ValueError(f"found the alias *{event.anchor}, expected its anchor before it")
            self._add(None, *self.anchors[event.anchor])
        elif isinstance(event, yaml.NodeEvent):
            if event.tag is not None:
                raise ValueError(
                    f"found the tag {short_repr(event.tag)}, expected values without tags"
                )
            if isinstance(event, yaml.ScalarEvent):
                if event.anchor:
                    self.anchors[event.anchor] = 1, 1
                self._add(event.value, 1, 1)
            else:
                is_mapping = isinstance(event, yaml.MappingStartEvent)
                self.open.append(_Collection(event.anchor, is_mapping))
                self.anchors.pop(event.anchor, None)  # not valid until it ends
                self._check_bounds()

    def _add(self, scalar: str | None, nodes: int, levels: int) -> None:
        """Add a completed node to its collection."""
        self.open[-1].add(scalar, nodes, levels)
        self._check_bounds()

    def _check_bounds(self) -> None:
        nodes = sum(collection.nodes for collection in self.open)
        levels = max(above + c.levels for above, c in enumerate(self.open))
        if nodes > _MAX_NODES:
            raise ValueError(f"found more than {_MAX_NODES} values with aliases expanded")
        if levels > _MAX_DEPTH:
            raise ValueError(f"found more than {_MAX_DEPTH} levels")


class _Collection:
    """An open list or mapping."""

    def __init__(self, anchor: str | None, is_mapping: bool = False):
        self.anchor = anchor
        self.nodes = self.levels = 1
        self.keys: set[str] | None = set() if is_mapping else None
        self._is_key = True

    def add(self, scalar: str | None, nodes: int, levels: int) -> None:
        """Add a node: its text if it is a scalar, and its size."""
        self.nodes += nodes
        self.levels = max(self.levels, levels + 1)
        if self.keys is None:
            return
        if self._is_key and scalar is not None:
            if scalar in self.keys:
                raise ValueError(f"found the key {short_repr(scalar)} twice")
            self.keys.add(scalar)
        self._is_key = not self._is_key


def _copied(value: object) -> object:
    """A deep copy without shared objects, such as those of aliases."""
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry) for entry in value]
    return value
