"""Griffe extension: docstrings with Sphinx's roles, ``::`` and ``Example:`` as Markdown."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")
_EXAMPLE = re.compile(r"^Example:(?=\n +>>>)", re.MULTILINE)
_EXAMPLE_BLOCK = re.compile(r"^Example::$", re.MULTILINE)
_BLOCK = re.compile(r"::$", re.MULTILINE)


class DocstringRoles(griffe.Extension):
    """A role such as func is shown as code, without what is hidden by a tilde."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change an object's docstring before it is parsed."""
        if obj.docstring is not None:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            text = _EXAMPLE.sub("Examples:", text)
            text = _EXAMPLE_BLOCK.sub("**Example:**", text)
            obj.docstring.value = _BLOCK.sub(":", text)
