"""The seek table of zstd's seekable format: where each frame begins, packed and unpacked.

It is a skippable frame at the end of the stream (zstd, `contrib/seekable_format/zstd_seekable_compression_format.md`,
version 0.1.0), so ordinary decoders pass over it.
"""

from __future__ import annotations

import struct

_SKIPPABLE_MAGIC = 0x184D2A5E
_FOOTER_MAGIC = 0x8F92EAB1
_FOOTER = struct.Struct("<IBI")
_ENTRY = struct.Struct("<II")


class SeekTable:
    """Collects the sizes of frames, in order."""

    def __init__(self) -> None:
        self._entries = bytearray()

    def add(self, packed_nbytes: int, nbytes: int) -> None:
        """The next frame takes `packed_nbytes` bytes and holds `nbytes`, each less than 4 GiB."""
        self._entries += _ENTRY.pack(packed_nbytes, nbytes)

    def to_bytes(self) -> bytes:
        """The skippable frame. Its entries have no checksums: the frames have their own."""
        head = struct.pack("<II", _SKIPPABLE_MAGIC, len(self._entries) + _FOOTER.size)
        return head + self._entries + _FOOTER.pack(len(self._entries) // _ENTRY.size, 0, _FOOTER_MAGIC)
