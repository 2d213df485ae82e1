"""The part of the pickle language that a file of weights uses, and nothing else of it.

A pickle is a program for a small stack machine, and the full language imports and calls whatever the file says. Here a
global is only a name, and a call is only an entry in the hands of the caller, who knows the few that build tensors.
Nothing is imported, no method of an object is called, no attribute set. Opcodes: CPython, Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

_LONGEST_NAME = 256
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
_NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H", b"G": ">d"}
_TEXTS = {b"X": ("<I", "utf-8"), b"\x8c": ("<B", "utf-8"), b"T": ("<I", "latin-1"), b"U": ("<B", "latin-1")}
_EMPTY: dict[bytes, Callable[[], Any]] = {b")": tuple, b"]": list, b"}": dict}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_PUTS, _GETS = {b"q": "<B", b"r": "<I"}, {b"h": "<B", b"j": "<I"}
_MAKERS = {b"o": "OBJ", b"\x81": "NEWOBJ", b"\x92": "NEWOBJ_EX", b"\x82": "EXT1", b"\x83": "EXT2", b"\x84": "EXT4"}


class Refused(ValueError):
    """A pickle that asks for more than data; the message is for a person."""


class Broken(ValueError):
    """Not a pickle, or one that ends too soon."""


@dataclass(frozen=True)
class Global:
    """A name such as `torch.FloatStorage`. It is never looked up."""

    name: str


def load(
    file: BinaryIO,
    size: int,
    allowed: frozenset[str],
    call: Callable[[str, tuple], Any],
    persistent: Callable[[Any], Any],
) -> Any:
    """Runs one pickle, from where the file stands to its STOP.

    Args:
        file: buffered; is left behind the pickle.
        size: of the file in bytes: no length in the pickle may reach further.
        allowed: the globals that it may name.
        call: gives what calling an allowed global with these arguments stands for.
        persistent: gives what a persistent id stands for.

    Raises:
        Refused: it names another global or uses an opcode that only objects need; before anything is called.
        Broken: it is none. `call` and `persistent` may raise both too.
    """
    try:
        return _run(file, size, allowed, call, persistent)
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError, struct.error) as error:
        raise Broken(f"the pickle is damaged before byte {file.tell():,} ({type(error).__name__})") from None


def _run(
    file: BinaryIO,
    size: int,
    allowed: frozenset[str],
    call: Callable[[str, tuple], Any],
    persistent: Callable[[Any], Any],
) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def take(count: int) -> bytes:
        # Compared first: Python would make room for a petabyte before it finds out.
        if count > size - file.tell() or len(data := file.read(count)) != count:
            raise Broken(f"the pickle ends in the middle, at byte {size:,}")
        return data

    def number(layout: str) -> Any:
        return struct.unpack(layout, take(struct.calcsize(layout)))[0]

    def name(*parts: str) -> Global:
        full = ".".join(parts)
        if full not in allowed:
            raise Refused(f"it asks for {ascii(full)[1:-1][:_LONGEST_NAME]}, which no weights need; nothing was run")
        return Global(full)

    def line() -> str:
        text = file.readline(_LONGEST_NAME)
        if not text.endswith(b"\n"):
            raise Broken("the pickle has a global without an end")
        return text[:-1].decode("utf-8")

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def store(items: list[Any]) -> None:
        target = stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise Broken("the pickle stores into what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of tuples in tuples in tuples takes for ever.
            if type(key) not in (str, int, float, bool, type(None)):
                raise Refused("a key of a dict is neither text nor number")
            if key in target:
                raise Refused(f"the key {key!r:.80} is there twice")
            target[key] = value

    while True:
        op = take(1)
        if op == b".":
            return stack.pop()
        elif op == b"\x80":
            if number("<B") > 5:
                raise Broken("not a pickle of a known protocol")
        elif op == b"\x95":
            take(8)  # the length of a frame, which only helps to read ahead
        elif op == b"(":
            marks.append(len(stack))
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _NUMBERS:
            stack.append(number(_NUMBERS[op]))
        elif op == b"\x8a":
            stack.append(int.from_bytes(take(number("<B")), "little", signed=True))
        elif op in _TEXTS:
            layout, encoding = _TEXTS[op]
            stack.append(take(number(layout)).decode(encoding))
        elif op in _EMPTY:
            stack.append(_EMPTY[op]())
        elif op in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[op])]
            stack.append(tuple(reversed(items)))
        elif op == b"t":
            stack.append(tuple(since_mark()))
        elif op == b"a":
            value = stack.pop()
            _list(stack[-1]).append(value)
        elif op == b"e":
            items = since_mark()
            _list(stack[-1]).extend(items)
        elif op == b"s":
            value, key = stack.pop(), stack.pop()
            store([key, value])
        elif op == b"u":
            store(since_mark())
        elif op in _PUTS:
            memo[number(_PUTS[op])] = stack[-1]
        elif op == b"\x94":
            memo[len(memo)] = stack[-1]
        elif op in _GETS:
            stack.append(memo[number(_GETS[op])])
        elif op == b"c":
            stack.append(name(line(), line()))
        elif op == b"\x93":
            last, module = stack.pop(), stack.pop()
            stack.append(name(module, last))
        elif op == b"i":
            raise Refused(f"it makes an object of {name(line(), line()).name}, which no weights need; nothing was run")
        elif op == b"Q":
            stack.append(persistent(stack.pop()))
        elif op == b"R":
            arguments, function = stack.pop(), stack.pop()
            if type(function) is not Global or type(arguments) is not tuple:
                raise Refused("it calls what is no function")
            stack.append(call(function.name, arguments))
        elif op == b"b":
            # A state dict is an OrderedDict with an attribute of versions, which says nothing about weights.
            stack.pop()
            if type(stack[-1]) is not dict:
                raise Refused("it sets the state of an object, which no weights need")
        elif op in _MAKERS:
            raise Refused(f"it makes objects ({_MAKERS[op]}), which no weights need; nothing was run")
        else:
            raise Broken(f"byte {file.tell() - 1:,} is no instruction that weights are written with")


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise Broken("the pickle appends to what is no list")
    return value
