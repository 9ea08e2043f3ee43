"""An eStargz blob read by hand, with nothing of blobtee's but what is asked of it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from dataclasses import dataclass
from typing import Any


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def members(data: bytes, limit: int | None = None) -> list[bytes]:
    """What each gzip member in `data` holds; with a limit, of the first so many."""
    found: list[bytes] = []
    while data and (limit is None or len(found) < limit):
        inflate = zlib.decompressobj(31)
        found.append(inflate.decompress(data))
        assert inflate.eof
        data = inflate.unused_data
    return found


@dataclass
class Blob:
    """The parts of a blob with a footer of 51 bytes."""

    data: bytes

    def __post_init__(self) -> None:
        footer = self.data[-51:]
        assert footer[:4] == b"\x1f\x8b\x08\x04"
        assert footer[32:38] == b"STARGZ"
        self.toc_offset = int(footer[16:32], 16)
        (table,) = members(self.data[self.toc_offset :], limit=1)
        with tarfile.open(fileobj=io.BytesIO(table)) as archive:
            (entry,) = archive.getmembers()
            assert entry.name == "stargz.index.json"
            file = archive.extractfile(entry)
            assert file is not None
            self.json = file.read()
        self.entries: list[dict[str, Any]] = json.loads(self.json)["entries"]

    @property
    def tar(self) -> bytes:
        """The layer without the table's entry."""
        return b"".join(members(self.data[: self.toc_offset]))

    @property
    def unpacked(self) -> bytes:
        return b"".join(members(self.data))

    def named(self, name: str) -> dict[str, Any]:
        """The last entry of that name."""
        return [entry for entry in self.entries if entry["name"] == name and entry["type"] != "chunk"][-1]

    def chunks(self, name: str) -> list[bytes]:
        """A file's chunks, each taken from where the table says that it is, and held against its digest."""
        start = self.entries.index(self.named(name))
        first = self.entries[start]
        lines = [first]
        for entry in self.entries[start + 1 :]:
            if entry["type"] != "chunk":
                break
            assert entry["name"] == name
            lines.append(entry)
        found: list[bytes] = []
        for line in lines:
            position = line.get("chunkOffset", 0)
            assert position == sum(map(len, found))
            nbytes = line.get("chunkSize") or first["size"] - position
            (member,) = members(self.data[line["offset"] :], limit=1)
            assert len(member) >= nbytes
            found.append(member[:nbytes])
            assert line["chunkDigest"] == sha256(found[-1])
        assert first["digest"] == sha256(b"".join(found))
        return found

    def content(self, name: str) -> bytes:
        return b"".join(self.chunks(name))
