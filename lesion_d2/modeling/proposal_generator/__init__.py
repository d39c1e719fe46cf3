"""Proposal generators."""

from .rpn import LesionRPN

__all__ = ["LesionRPN"]
