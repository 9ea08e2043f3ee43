"""What our reader and Go's archive/tar see in the same tar: containerd unpacks images with that one.

A layer that a scanner reads in one way and a runtime in another hides files. Whatever both take has to be the same;
either may refuse more. `BLOBTEE_TARS` says how many tars (3000).
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blobtee.errors import BlobteeError
from blobtee.layers import Entry, EntryType, entries
from blobtee.layers.entry import normalise
from tests.fuzz.test_tar import INTERESTING, SEEDS, fix_checksums, record
from tests.integration import gotools
from tests.unit.layers.test_reader import header, padded

TARS = int(os.environ.get("BLOBTEE_TARS", "3000"))
RECORDS = (
    *(b"path=a//b", b"path=./x/", b"path=q", b"path=", b"path=a\0b", b"linkpath=t", b"linkpath=/t/u", b"size=3"),
    *(b"size=5", b"size=600", b"size=0", b"size=", b"size=-1", b"size=1.5", b"uid=5", b"gid=007", b"uid=", b"uid=+1"),
    *(b"mtime=1.5", b"mtime=-1.5", b"mtime=1e3", b"mtime=1.", b"mtime=.5", b"mtime=7", b"uname=\xff", b"gname=g"),
    *(b"comment=c", b"atime=3", b"SCHILY.xattr.user.a=1", b"GNU.sparse.name=s", b"GNU.sparse.major=1"),
    *(b"GNU.sparse.major=0", b"GNU.sparse.minor=0", b"GNU.sparse.minor=1", b"GNU.sparse.map=0,5"),
    *(b"GNU.sparse.map=1,4", b"GNU.sparse.map=", b"GNU.sparse.size=6", b"GNU.sparse.size=5"),
    *(b"GNU.sparse.realsize=5", b"GNU.sparse.realsize=700", b"GNU.sparse.offset=0", b"GNU.sparse.numbytes=5"),
    *(b"GNU.sparse.numblocks=1", b"GNU.sparse.numblocks=0"),
)
KINDS = {
    EntryType.FILE: "0",
    EntryType.HARDLINK: "1",
    EntryType.SYMLINK: "2",
    EntryType.CHARACTER_DEVICE: "3",
    EntryType.BLOCK_DEVICE: "4",
    EntryType.DIRECTORY: "5",
    EntryType.FIFO: "6",
}
Ask = Callable[[bytes], dict[str, Any]]


@pytest.fixture(scope="module")
def ask_go() -> Iterator[Ask]:
    program = gotools.program_of(Path(__file__).parent / "gotar", ".", "gotar")
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(tar: bytes) -> dict[str, Any]:
            stdin.write(struct.pack("<I", len(tar)) + tar)
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        yield ask
        stdin.close()


def damaged(draw: random.Random) -> bytes:
    tar = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randrange(5)):
        tar[draw.randrange(len(tar))] = draw.choice(INTERESTING) if draw.random() < 0.7 else draw.randrange(256)
    fix_checksums(tar)
    return bytes(tar)


def made(draw: random.Random) -> bytes:
    tar = b""
    for _ in range(draw.randrange(1, 4)):
        magic = draw.choice([b"ustar\x0000", b"ustar  \0", bytes(8)])
        for _ in range(draw.choice([0, 1, 1, 2, 3])):
            extra = draw.choice([b"x", b"x", b"x", b"g", b"L", b"K"])
            if extra in (b"L", b"K"):
                block = draw.choice([b"longname", b"ln/\0zz", b"/abs\0", b"d/l/", b"\0"])
            else:
                block = b"".join(record(draw.choice(RECORDS)) for _ in range(draw.randrange(5)))
            tar += header(b"extra", extra, len(block), magic=magic) + padded(block)
        kind = draw.choice([b"0", b"0", b"0", b"\0", b"1", b"2", b"3", b"5", b"6"])
        name = draw.choice([b"f", b"d/", b"a/./b", b"/x", b"\xe4", b"long"])
        prefix = draw.choice([b"", b"", b"pre/fix", b"00000000001", b"\xe4/"])
        tar += header(name, kind, 5, magic=magic, linkname=b"./link//name", prefix=prefix)
        tar += padded(b"hello") if kind in (b"0", b"\0") else b""
    return tar + bytes(1024)


def by_us(entry: Entry, content: bytes) -> dict[str, object]:
    return {
        "type": KINDS[entry.type],
        "path": entry.path,
        "link": entry.linkname,
        "owners": (entry.uid, entry.gid, entry.uname, entry.gname),
        "mode": entry.mode,
        "seconds": entry.mtime_ns // 10**9,
        "xattrs": len(entry.xattrs),
        "content": content,
    }


def by_go(told: dict[str, Any]) -> dict[str, object]:
    kind = chr(told["Type"]).replace("S", "0")
    name, link, uname, gname = (_text(told[key]).decode(errors="surrogateescape") for key in _NAMES)
    return {
        "type": kind,
        "path": normalise(name, "a path"),
        "link": normalise(link, "a target") if kind == "1" else link * (kind == "2"),
        "owners": (told["UID"], told["GID"], uname, gname),
        "mode": told["Mode"] & 0o7777,
        "seconds": told["Seconds"],
        "xattrs": told["Xattrs"],
        "content": _text(told["Data"]),
    }


_NAMES = ("Name", "Link", "Uname", "Gname")


def _text(value: str | None) -> bytes:
    return base64.b64decode(value or "")


def test_what_both_take_is_the_same(ask_go: Ask) -> None:
    draw = random.Random(7)
    both = 0
    for _ in range(TARS):
        tar = damaged(draw) if draw.random() < 0.15 else made(draw)
        ours, whole = [], True
        try:
            for entry in entries(io.BytesIO(tar)):
                with entry.data() as data:
                    ours.append(by_us(entry, data.readall()))
        except BlobteeError:
            whole = False
        answer = ask_go(tar)
        # containerd passes over what is said of all files (`g`), and refuses types that it does not know.
        told = [entry for entry in answer["entries"] or [] if entry["Type"] != ord("g")]
        if any(chr(entry["Type"]) not in "0123456S" for entry in told):
            continue
        for mine, theirs in zip(ours, told, strict=False):
            assert mine == by_go(theirs), tar
        if whole and not answer["failure"]:
            assert len(ours) == len(told), tar
            both += 1
    assert both > TARS // 10, "hardly any tar was one that both take"
