"""`blobtee ls`."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime

import click

from blobtee.cli.options import trust_option
from blobtee.cli.reading import opened
from blobtee.cli.session import PlatformType, Session, verb
from blobtee.image import Image, Node
from blobtee.layers import EntryType
from blobtee.oci import Platform

_BITS = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.HARDLINK: stat.S_IFREG,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.CHARACTER_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
    EntryType.FIFO: stat.S_IFIFO,
}


@click.command()
@click.argument("name", metavar="REF")
@click.argument("path", default="/")
@click.option("-l", "long", is_flag=True, help="Mode, owner, size and time as well.")
@click.option("--recursive", "-R", is_flag=True, help="Everything below PATH.")
@click.option("--platform", type=PlatformType(), help="Image of an index; default: this machine's, or the one pulled.")
@trust_option()
@verb(remote=True)
def command(
    session: Session, name: str, path: str, long: bool, recursive: bool, platform: Platform | None, trust: str
) -> int:
    """List files inside an image.

    PATH is a directory, its parts may be links; or anything else, which is listed itself. Paths are printed in full.
    Layers with a table of contents are not brought for that, only the table; docs/formats.md says which have one.

    \b
    Examples:
      blobtee ls python:3.12 /usr/local/bin
      blobtee ls -lR --json python:3.12 /etc | jq .path
    """
    with session.store() as store, session.registry(name.partition("@")[0]) as registry:
        with opened(session, store, registry, name, platform) as image:
            for node in _nodes(image, path, recursive, trust):
                session.output.result(_fields(node), _long(node) if long else "/" + node.path)
    return 0


def _nodes(image: Image, path: str, recursive: bool, trust: str) -> Iterator[Node]:
    top = image.lookup(path, trust=trust)
    if top.type is not EntryType.DIRECTORY:
        yield top
        return
    for node in image.walk(path, trust=trust):
        if recursive or node.path.rpartition("/")[0] == top.path:
            yield node


def _fields(node: Node) -> dict[str, object]:
    entry = node.entry
    value: dict[str, object] = {
        "path": "/" + node.path,
        "type": node.type.value,
        "mode": f"{node.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size": node.size,
        "mtime": entry.mtime_ns / 1e9,
        "layer": node.layer,
    }
    if node.linkname:
        value["target"] = node.linkname
    return value


def _long(node: Node) -> str:
    entry = node.entry
    mode = stat.filemode(_BITS[node.type] | node.mode)
    try:
        when = datetime.fromtimestamp(entry.mtime_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        when = str(entry.mtime_ns // 1_000_000_000)
    target = f" -> {node.linkname}" if node.type is EntryType.SYMLINK else ""
    return f"{mode} {entry.uid:>5} {entry.gid:>5} {node.size:>12} {when} /{node.path}{target}"
