"""containerd's filter language, which lists of blobs and ingests take (`spec/content.md` section 2).

A filter is a comma list of selectors that must all match; of several filters one must. A selector is `field` (it is
there), `field==value`, `field!=value` (an absent one counts as empty) or `field~=expression`, where the expression is
searched for. Fields are `digest`, `ref` and `labels.<key>`; a key with other than letters, digits, `-`, `_` and dots
is quoted: `labels."containerd.io/x"`. Values may be quoted, expressions also by `/` or `|`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from blobtee.content.expressions import searcher
from blobtee.errors import InvalidArgument

Fields = Callable[[Sequence[str]], str | None]
"""Value of a field path in one object; None when it has none."""

Filter = Callable[[Fields], bool]

MAX_FILTER = 64 << 10
"""Characters of one filter."""

MAX_SECONDS = 5.0
"""Processor time for the expressions of all filters that were given together, and all values they are tried on."""

_SPACE = re.compile(r"\s*")
_FIELD = re.compile(r"[A-Za-z0-9_-]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,\"/|=!~.][^\s,]*")
_ESCAPE = re.compile(r"\\(?:([abfnrtv\\])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_PLAIN = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}


def parse(filters: Sequence[str]) -> Filter:
    """One predicate for all of `filters`; no filter, or an empty one, matches everything.

    `InvalidArgument` for bad syntax, and for expressions that could take too long (`content.expressions`) or together
    do, which may show only when values are looked at. One that is no regular expression matches nothing.
    """
    budget = _Budget()
    alternatives = [_Parser(text, budget).selectors() for text in filters]
    if not alternatives:
        return lambda fields: True
    return lambda fields: any(all(match(fields) for match in selectors) for selectors in alternatives)


def blob_fields(digest: str, labels: Mapping[str, str]) -> Fields:
    """The fields of a blob."""

    def value(path: Sequence[str]) -> str | None:
        if path[0] == "labels":
            return labels.get(".".join(path[1:]))
        return digest if list(path) == ["digest"] else None

    return value


def ingest_fields(ref: str) -> Fields:
    """The fields of an ingest."""
    return lambda path: ref if list(path) == ["ref"] else None


class _Budget:
    """What expressions may take."""

    def __init__(self) -> None:
        self._left = MAX_SECONDS

    @contextmanager
    def spending(self) -> Iterator[None]:
        """A block that spends of it; `InvalidArgument` at its end when there is nothing left."""
        begun = time.thread_time()
        yield
        self._left -= time.thread_time() - begun
        if self._left < 0:
            raise InvalidArgument(f"the expressions of these filters take more than {MAX_SECONDS:g} seconds")


class _Parser:
    def __init__(self, text: str, budget: _Budget) -> None:
        if len(text) > MAX_FILTER:
            raise InvalidArgument(f"a filter of {len(text)} characters; the limit is {MAX_FILTER}")
        if "\0" in text:
            raise InvalidArgument("a filter with a NUL character")
        self._text = text
        self._budget = budget
        self._at = 0

    def selectors(self) -> list[Filter]:
        if not self._text:
            return []
        found = [self._selector()]
        while self._at < len(self._text):
            if self._text[self._at] != ",":
                raise self._error("a comma")
            self._at += 1
            found.append(self._selector())
        return found

    def _selector(self) -> Filter:
        path = self._path()
        if self._at == len(self._text) or self._text[self._at] == ",":
            return lambda fields: fields(path) is not None
        operator = self._token(_OPERATOR)
        if operator == "==":
            wanted = self._value()
            return lambda fields: fields(path) == wanted
        if operator == "!=":
            unwanted = self._value()
            return lambda fields: fields(path) != unwanted
        if operator == "~=":
            return self._matching(path, self._value('"/|'))
        raise self._error("an operator: ==, != or ~=")

    def _matching(self, path: tuple[str, ...], expression: str) -> Filter:
        budget = self._budget
        with budget.spending():
            found = searcher(expression)

        def matches(fields: Fields) -> bool:
            with budget.spending():
                return found(fields(path) or "")

        return matches

    def _path(self) -> tuple[str, ...]:
        path = [self._field()]
        while self._text[self._at : self._at + 1] == ".":
            self._at += 1
            path.append(self._field())
        return tuple(path)

    def _field(self) -> str:
        self._token(_SPACE)
        if self._text[self._at : self._at + 1] == '"':
            return self._quoted()
        field = self._token(_FIELD)
        if not field:
            raise self._error("the name of a field")
        return field

    def _value(self, quotes: str = '"') -> str:
        self._token(_SPACE)
        if self._text[self._at : self._at + 1] in tuple(quotes):
            return self._quoted()
        value = self._token(_VALUE)
        if not value:
            raise self._error("a value")
        return value

    def _quoted(self) -> str:
        quote = self._text[self._at]
        self._at += 1
        result = []
        while (letter := self._text[self._at : self._at + 1]) != quote:
            if letter in ("", "\n"):
                raise self._error(f"a closing {quote}")
            if letter != "\\":
                result.append(letter)
                self._at += 1
            elif self._text[self._at + 1 : self._at + 2] == quote:
                result.append(quote)
                self._at += 2
            else:
                result.append(self._escape())
        self._at += 1
        return "".join(result)

    def _escape(self) -> str:
        match = _ESCAPE.match(self._text, self._at)
        if match is None:
            raise self._error("an escape sequence")
        self._at = match.end()
        plain, octal, *hexadecimal = match.groups()
        if plain:
            return _PLAIN[plain]
        number = int(octal, 8) if octal else int("".join(digits or "" for digits in hexadecimal), 16)
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            raise self._error("an escape sequence of a character")
        return chr(number)

    def _token(self, pattern: re.Pattern[str]) -> str:
        if pattern is _OPERATOR:
            self._token(_SPACE)
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match.group()

    def _error(self, wanted: str) -> InvalidArgument:
        return InvalidArgument(f"bad filter {self._text[:200]!r}: {wanted} expected at character {self._at + 1}")
