"""Limits on the memory and time that a pickle needs, checked before it is loaded.

A few bytes can make Python's reader allocate a table of 2^32 entries, or hash a tuple that contains
another tuple twice, which contains the next one twice, and so on.
"""

import pickletools
from collections.abc import Iterator

_MARK = pickletools.markobject
_OPCODES = {opcode.code.encode("latin1")[0]: opcode for opcode in pickletools.opcodes}
# Opcodes whose argument begins with its length: bytes of that length, whether it is signed.
_COUNTED = {
    pickletools.TAKEN_FROM_ARGUMENT1: (1, False),
    pickletools.TAKEN_FROM_ARGUMENT4: (4, True),
    pickletools.TAKEN_FROM_ARGUMENT4U: (4, False),
    pickletools.TAKEN_FROM_ARGUMENT8U: (8, False),
}
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
# Maximum number of parts per byte of the file, with parts counted once per use.
_SLACK = 64


class Refused(Exception):
    """A pickle contains something that arrays and plain containers do not need."""


def check_opcodes(content: bytes) -> None:
    """Check a pickle's opcodes without running any.

    Raises:
        Refused: it numbers objects beyond its own size, or has far more parts than bytes, because
            parts are used repeatedly.
        ValueError, IndexError, KeyError: it is not a readable pickle.
    """
    used_again, largest = 0, _SLACK * (len(content) + _SLACK)
    stack: list = []  # number of parts of each item, or a mark
    memo: dict[int, int] = {}
    for opcode, argument in _opcodes(content):
        popped = _popped(stack, opcode)
        parts = 1 + sum(popped)
        if opcode.name in _PUTS:
            number = _number(opcode, argument)
            if not 0 <= number <= len(content):
                raise Refused(
                    f"found object number {number} in a pickle of {len(content)} bytes, "
                    "expected a lower number"
                )
            memo[number] = stack[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = parts
        elif opcode.name in _GETS:
            parts = memo[_number(opcode, argument)]
        if opcode.name in _GETS or opcode.name == "DUP":
            used_again += parts
        if used_again > largest:
            raise Refused(f"found more than {largest} parts in a pickle of {len(content)} bytes")
        stack.extend(_MARK if kind is _MARK else parts for kind in opcode.stack_after)


def _popped(stack: list, opcode: pickletools.OpcodeInfo) -> list[int]:
    """Pop what an opcode takes from the stack; returns the number of parts of each item."""
    before = opcode.stack_before
    if _MARK not in before:
        popped = [stack.pop() for _ in before]
        return [0 if parts is _MARK else parts for parts in popped]  # POP takes marks too
    popped = []
    while (parts := stack.pop()) is not _MARK:
        popped.append(parts)
    popped += [stack.pop() for _ in range(before.index(_MARK))]
    return popped


def _number(opcode: pickletools.OpcodeInfo, argument: bytes) -> int:
    is_text = opcode.arg.n == pickletools.UP_TO_NEWLINE
    return int(argument) if is_text else int.from_bytes(argument, "little")


def _opcodes(content: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, bytes]]:
    """The opcodes up to the first STOP, with their raw arguments."""
    position = 0
    while True:
        opcode = _OPCODES[content[position]]
        position += 1
        length = 0 if opcode.arg is None else opcode.arg.n
        start = position
        if length == pickletools.UP_TO_NEWLINE:
            for _ in range(2 if opcode.name in ("GLOBAL", "INST") else 1):
                position = content.index(b"\n", position) + 1
        elif length in _COUNTED:
            width, signed = _COUNTED[length]
            counted = content[position : position + width]
            position += width + int.from_bytes(counted, "little", signed=signed)
        else:
            position += length
        if not start <= position <= len(content):
            raise ValueError("pickle data was truncated")
        yield opcode, content[start:position]
        if opcode.name == "STOP":
            return
