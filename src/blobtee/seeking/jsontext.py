"""JSON from layers, one value of a long array at a time: nobody has a table of 150 MiB in memory as objects, where an
empty array takes thirty times the two bytes that it is written with."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from blobtee.errors import CorruptData, TooLarge

MAX_VALUE = 4 << 20
"""Characters of one value: enough for a file with the most holes and attributes that a tar can tell."""

_PIECE = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonText:
    """Text in UTF-8, bytes that are none escaped, that is read from its start to its end.

    `CorruptData`, `ValueError` and `RecursionError` for what is no JSON, `TooLarge` for a value beyond `MAX_VALUE`.
    """

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data)
        self._taken = 0
        self._bytes = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._value = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def take(self, marks: str) -> str:
        """Pass over one of `marks`, which is next; which one."""
        found = self.peek()
        if not found or found not in marks:
            raise CorruptData(f"a table that is no JSON: {found!r} where one of {marks!r} should be")
        self._at += 1
        return found

    def value(self) -> Any:
        """The value that is next."""
        self.peek()
        while True:
            try:
                value, end = self._value(self._text, self._at)
            except ValueError:
                if not self._grow():
                    raise
                continue
            # A number may go on: `1` is a value of `1e+`, and so it is of `1e+5`.
            if end + 2 < len(self._text) or not self._grow():
                self._at = end
                return value

    def each(self, opening: str, closing: str) -> Iterator[None]:
        """Once for each element between the marks, which is to be taken then."""
        self.take(opening)
        if self.peek() == closing:
            self.take(closing)
            return
        while True:
            yield
            if self.take("," + closing) == closing:
                return

    def end(self) -> None:
        """`CorruptData` if there is more."""
        if self.peek():
            raise CorruptData("a table with something behind it")

    def _grow(self) -> bool:
        """Have more of the text, and forget what was read; False when there is no more."""
        rest = self._text[self._at :]
        if self._taken == len(self._data):
            return False
        if len(rest) >= MAX_VALUE:
            raise TooLarge(f"a table with a value of more than {MAX_VALUE} characters")
        # Twice as much each time: a long value is not looked through for each piece.
        nbytes = min(max(_PIECE, len(rest)), MAX_VALUE - len(rest))
        piece = self._data[self._taken : self._taken + nbytes]
        self._taken += len(piece)
        self._text = rest + self._bytes.decode(piece, final=self._taken == len(self._data))
        self._at = 0
        return True
