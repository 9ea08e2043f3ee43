"""Writing a file of bbolt, as small as tests need it."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from blobtee.plugin.adopting.bolt import _fnv1a

PAGE = 4096
Tree = Mapping[bytes, "bytes | Tree"]


class BoltFile:
    """Buckets are written inline unless they are too large for that, or `inline` is off; large ones get branches."""

    def __init__(self, tree: Tree, *, inline: bool = True) -> None:
        self._inline = inline
        self._pages: dict[int, bytes] = {}
        self._next = 3
        root = self._store(tree)
        self._end = self._next
        self.data = b"".join(
            [
                self._meta(0, root, 6),
                self._meta(1, root, 7),
                self._page(2, 0x10, 0, b""),
                *(self._pages[number] for number in sorted(self._pages)),
            ]
        )

    def _meta(self, number: int, root: int, transaction: int) -> bytes:
        meta = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, PAGE, 0, root, 0, 2, self._end, transaction)
        return self._page(number, 4, 0, meta + struct.pack("<Q", _fnv1a(meta)))

    def _page(self, number: int, flags: int, count: int, body: bytes) -> bytes:
        pages = -(-(16 + len(body)) // PAGE)
        return (struct.pack("<QHHI", number, flags, count, pages - 1) + body).ljust(pages * PAGE, b"\0")

    def _store(self, tree: Tree) -> int:
        """The number of the tree's root page."""
        items = sorted(tree.items())
        if len(items) <= 40:
            return self._add(2, len(items), self._leaf(tree))
        parts = [dict(items[at : at + 40]) for at in range(0, len(items), 40)]
        children = [(next(iter(part)), self._store(part)) for part in parts]
        heads, keys = b"", b""
        for index, (key, number) in enumerate(children):
            position = (len(children) - index) * 16 + len(keys)
            heads += struct.pack("<IIQ", position, len(key), number)
            keys += key
        return self._add(1, len(children), heads + keys)

    def _add(self, flags: int, count: int, body: bytes) -> int:
        number = self._next
        page = self._page(number, flags, count, body)
        self._next += len(page) // PAGE
        self._pages[number] = page
        return number

    def _leaf(self, tree: Tree) -> bytes:
        heads, bodies = b"", b""
        items = sorted(tree.items())
        for index, (key, member) in enumerate(items):
            value = member if isinstance(member, bytes) else self._bucket(member)
            position = (len(items) - index) * 16 + len(bodies)
            heads += struct.pack("<IIII", 0 if isinstance(member, bytes) else 1, position, len(key), len(value))
            bodies += key + value
        return heads + bodies

    def _bucket(self, tree: Tree) -> bytes:
        if self._inline and len(tree) <= 4 and all(isinstance(member, bytes) for member in tree.values()):
            return struct.pack("<QQ", 0, 0) + struct.pack("<QHHI", 0, 2, len(tree), 0) + self._leaf(tree)
        return struct.pack("<QQ", self._store(tree), 0)
