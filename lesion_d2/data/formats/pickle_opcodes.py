"""What a pickle asks of memory and time, found before it is loaded.

A few bytes can ask Python's reader for a table of 2^32 entries, or for the hash of a tuple that
holds one tuple twice, which holds the next one twice, and so on.
"""

import pickletools
from collections.abc import Iterator

_MARK = pickletools.markobject
_OPCODES = {opcode.code.encode("latin1")[0]: opcode for opcode in pickletools.opcodes}
# Where an argument says its own length: bytes of that length, whether it may be negative.
_COUNTED = {
    pickletools.TAKEN_FROM_ARGUMENT1: (1, False),
    pickletools.TAKEN_FROM_ARGUMENT4: (4, True),
    pickletools.TAKEN_FROM_ARGUMENT4U: (4, False),
    pickletools.TAKEN_FROM_ARGUMENT8U: (8, False),
}
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
# A pickle that uses what it made before may have so many times as many parts as its file has bytes.
_SLACK = 64


class Refused(Exception):
    """A pickle asks for what it has no need of."""


def check_opcodes(content: bytes) -> None:
    """Go through a pickle's opcodes without running any.

    Raises:
        Refused: it numbers its objects beyond its own size, or is made of far more parts than
            bytes, because it uses some again and again.
        ValueError, IndexError, KeyError: it is no readable pickle.
    """
    used_again, largest = 0, _SLACK * (len(content) + _SLACK)
    stack: list = []  # how many parts what is there has, or a mark
    memo: dict[int, int] = {}
    for opcode, argument in _opcodes(content):
        popped = _popped(stack, opcode)
        parts = 1 + sum(popped)
        if opcode.name in _PUTS:
            number = _number(opcode, argument)
            if not 0 <= number <= len(content):
                raise Refused(
                    f"found an object of number {number} in a pickle of {len(content)} bytes, "
                    "expected less"
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
    """Take from the stack what an opcode takes; the parts of each."""
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
    """The opcodes up to the first STOP, and their arguments as they stand there."""
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
