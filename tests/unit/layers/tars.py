"""Layers made by hand, and trees described so that two can be compared."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


def member(
    name: str,
    kind: bytes = tarfile.REGTYPE,
    data: bytes = b"",
    *,
    link: str = "",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: float | str = 1,
    device: tuple[int, int] = (0, 0),
    xattrs: dict[str, str] | None = None,
    pax: dict[str, str] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode, info.uid, info.gid = kind, len(data), link, mode, uid, gid
    info.devmajor, info.devminor = device
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()} | (pax or {})
    if isinstance(mtime, str):
        info.pax_headers["mtime"] = mtime
    else:
        info.mtime = mtime
    return info, data


def directory(name: str, mode: int = 0o755, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.DIRTYPE, mode=mode, **fields)  # type: ignore[arg-type]


def file(name: str, data: bytes = b"data", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, data=data, **fields)  # type: ignore[arg-type]


def symlink(name: str, target: str, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.SYMTYPE, link=target, **fields)  # type: ignore[arg-type]


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.LNKTYPE, link=target)


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Names go in as they are: tarfile itself is not asked what it thinks of them."""
    buffer = io.BytesIO()
    for info, data in members:
        buffer.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        buffer.write(data + bytes(-len(data) % 512))
    buffer.write(bytes(1024))
    return buffer.getvalue()


def tree(root: Path) -> dict[str, object]:
    """What is below `root`: files' content, links' targets, directories and others by kind."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            what: object = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            what = f"-> {os.readlink(path)}"
        else:
            what = stat.filemode(status.st_mode)[0]
        found[str(path.relative_to(root))] = what
    return found


def details(root: Path) -> dict[str, tuple[object, ...]]:
    """What a stat tells of everything below `root`, hard links told by the first of their names."""
    firsts: dict[int, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        name, status = str(path.relative_to(root)), path.lstat()
        first = firsts.setdefault(status.st_ino, name)
        size = 0 if path.is_dir() and not path.is_symlink() else status.st_size
        found[name] = (status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, first, status.st_rdev)
    return found


def remove(root: Path) -> None:
    """Trees of these tests are deeper than what pytest itself can remove."""
    subprocess.run(["rm", "-rf", str(root)], check=True)


@contextmanager
def as_nobody() -> Iterator[None]:
    """The block as a user without rights, when the tests run as root."""
    if os.geteuid():
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
