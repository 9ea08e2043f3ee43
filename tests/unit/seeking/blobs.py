"""Layers of every kind that has a table of contents, with a tar that has a bit of everything."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import random
import struct
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import zstandard

from blobtee.compression import Compression
from blobtee.conversion import Packer
from blobtee.layers import Entry, EntryType, entries
from blobtee.oci import Descriptor, Digest, mediatypes
from blobtee.oci.annotations import (
    CHUNKED_DIGEST,
    CHUNKED_POSITION,
    STARGZ_CHUNKED_DIGEST,
    STARGZ_CHUNKED_POSITION,
    TOC_DIGEST,
)

GZIP = mediatypes.OCI_LAYER + "+gzip"
ZSTD = mediatypes.OCI_LAYER + "+zstd"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def noise(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def text(nbytes: int) -> bytes:
    return (b"some words that come again and again, %d times over; " * (nbytes // 40))[:nbytes]


FILES: dict[str, bytes] = {
    "etc/conf": b"setting = 1\n",
    "bin/large": noise(3 << 20),
    "etc/empty": b"",
    "share/text": text(2 << 20),
    "bin/small": b"#!/bin/sh\n",
    "n" * 150: b"a long name",
}


def tar(files: Mapping[str, bytes] = FILES) -> bytes:
    """The files, their directories, a symbolic and a hard link to the first of them, a device, and attributes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.mode = len(data), kind, 0o640
            member.mtime, member.uid, member.gid, member.uname = 1_600_000_000, 7, 8, "user"
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))

        for name in sorted({path.split("/")[0] for path in files if "/" in path}):
            add(name + "/", kind=tarfile.DIRTYPE, mode=0o755)
        for name, data in files.items():
            add(name, data, pax_headers={"SCHILY.xattr.user.name": name[:5]})
        first = next(iter(files))
        add("link", kind=tarfile.SYMTYPE, linkname=first)
        add("hard", kind=tarfile.LNKTYPE, linkname=first)
        add("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("pipe", kind=tarfile.FIFOTYPE)
    return buffer.getvalue()


@dataclass(frozen=True)
class Blob:
    data: bytes
    desc: Descriptor


def blob(data: bytes, media_type: str, annotations: Mapping[str, str]) -> Blob:
    return Blob(data, Descriptor(media_type, Digest.of(data), len(data), annotations=annotations))


def ours(kind: str, data: bytes, threads: int | None = None) -> Blob:
    """What blobtee makes of a tar."""
    compression = Compression(kind)
    out = io.BytesIO()
    with Packer(compression, out.write, threads=threads) as packer:
        for start in range(0, len(data), 300_000):
            packer.write(data[start : start + 300_000])
        packed = packer.finish()
    return blob(out.getvalue(), compression.type.media_type, packed.annotations)


Rows = list[dict[str, Any]]
Change = Callable[[Rows], object]
_TYPES = {
    EntryType.FILE: "reg",
    EntryType.DIRECTORY: "dir",
    EntryType.SYMLINK: "symlink",
    EntryType.HARDLINK: "hardlink",
    EntryType.CHARACTER_DEVICE: "char",
    EntryType.BLOCK_DEVICE: "block",
    EntryType.FIFO: "fifo",
}


def nothing(rows: Rows) -> None:
    pass


def frames(data: bytes, *, chunk: int, change: Change, zeros: bool) -> tuple[bytes, bytes]:
    """The tar in frames as containers/storage cuts it, and the JSON that tells them."""
    rows: Rows = []
    out = bytearray()
    position = 0

    def pack(end: int) -> None:
        nonlocal position
        if end > position:
            out.extend(zstandard.ZstdCompressor().compress(data[position:end]))
        position = end

    for entry in entries(io.BytesIO(data)):
        row = described(entry)
        rows.append(row)
        if not entry.size:
            continue
        pack(entry.offset)
        pieces = []
        for start in range(0, entry.size, chunk):
            nbytes = min(chunk, entry.size - start)
            piece = data[entry.offset + start :][:nbytes]
            told = {"chunkSize": nbytes, "chunkOffset": start, "offset": len(out)}
            told["chunkSize"] = 0 if start + nbytes == entry.size else nbytes
            pieces.append({**told, "chunkDigest": sha256(piece)})
            if zeros and piece == bytes(nbytes):
                pieces[-1] |= {"chunkType": "zeros"}
            pack(entry.offset + start + nbytes)
        row |= {"digest": sha256(data[entry.offset :][: entry.size]), "endOffset": len(out), **pieces[0]}
        rows += [{"type": "chunk", "name": row["name"], **piece} for piece in pieces[1:]]
    pack(len(data))
    change(rows)
    return bytes(out), json.dumps({"version": 1, "entries": rows}, indent="\t").encode()


def described(entry: Entry) -> dict[str, Any]:
    row = {
        "type": _TYPES[entry.type],
        "name": entry.path + ("/" if entry.type is EntryType.DIRECTORY else ""),
        "linkName": entry.linkname,
        "mode": entry.mode,
        "size": entry.size,
        "uid": entry.uid,
        "gid": entry.gid,
        "userName": entry.uname,
        "modtime": "2020-09-13T12:26:40Z",
        "devMajor": entry.devmajor,
        "devMinor": entry.devminor,
        "xattrs": {key: base64.b64encode(value).decode() for key, value in entry.xattrs.items()},
    }
    return {key: value for key, value in row.items() if value}


def skippable(data: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A50, len(data)) + data


def chunked(
    data: bytes,
    dialect: str = "containers",
    *,
    chunk: int = 1 << 20,
    change: Change = nothing,
    zeros: bool = False,
    with_position: bool = True,
) -> Blob:
    """A zstd:chunked layer of either dialect."""
    out, table = frames(data, chunk=chunk, change=change, zeros=zeros)
    packed = zstandard.ZstdCompressor(level=6).compress(table)
    offset = len(out) + 8
    numbers = (offset, len(packed), len(table), 1)
    out += skippable(packed)
    if dialect == "containers":
        split = zstandard.ZstdCompressor().compress(b"tar-split would be here")
        at = len(out) + 8
        out += skippable(split)
        out += skippable(struct.pack("<7Q", *numbers, at, len(split), 23) + b"GNUlInUx")
        digest_key, position_key = CHUNKED_DIGEST, CHUNKED_POSITION
    else:
        out += skippable(struct.pack("<4Q", *numbers) + b"GnUlInUx")
        digest_key, position_key = STARGZ_CHUNKED_DIGEST, STARGZ_CHUNKED_POSITION
    annotations = {digest_key: sha256(packed)}
    if with_position:
        annotations[position_key] = ":".join(map(str, numbers))
    if dialect == "stargz":
        annotations[TOC_DIGEST] = sha256(table)
    return blob(out, ZSTD, annotations)


def members(pieces: Iterable[bytes]) -> bytes:
    return b"".join(gzip.compress(piece, mtime=0) for piece in pieces)


def estargz_footer(offset: int, *, legacy: bool = False) -> bytes:
    payload = b"%016x" % offset + b"STARGZ"
    extra = payload if legacy else b"SG" + struct.pack("<H", len(payload)) + payload
    head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", len(extra))
    return head + extra + b"\x01\x00\x00\xff\xff" + bytes(8)


def estargz(parts: bytes, rows: Rows, *, legacy: bool = False, version: int = 1) -> Blob:
    """An eStargz layer of members that were made elsewhere."""
    table = json.dumps({"version": version, "entries": rows}).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("stargz.index.json")
        info.size = len(table)
        archive.addfile(info, io.BytesIO(table))
    data = parts + members([buffer.getvalue()]) + estargz_footer(len(parts), legacy=legacy)
    return blob(data, GZIP, {TOC_DIGEST: sha256(table)})
