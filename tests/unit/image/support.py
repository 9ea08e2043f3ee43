"""Layer stacks from small recipes, and a second opinion on what they unpack to."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blobtee.content import MemoryStore
from blobtee.image import Tree
from blobtee.oci import Compressed
from blobtee.testing import images


@dataclass(frozen=True)
class Put:
    """`kind`: f(ile), d(irectory), s(ymlink), h(ard link), w(hiteout), o(paque directory)."""

    kind: str
    path: str
    value: str = ""


Recipe = Sequence[Put]


def tar(recipe: Recipe) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for put in recipe:
            name = put.path
            directory, slash, base = name.rpartition("/")
            if put.kind == "w":
                name = f"{directory}{slash}.wh.{base}"
            elif put.kind == "o":
                name = f"{name}/.wh..wh..opq" if name else ".wh..wh..opq"
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            data = put.value.encode() if put.kind == "f" else b""
            member.size = len(data)
            if put.kind in "dsh":
                member.type = {"d": tarfile.DIRTYPE, "s": tarfile.SYMTYPE, "h": tarfile.LNKTYPE}[put.kind]
                member.linkname = put.value
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def tree(*recipes: Recipe | bytes, compression: Compressed = Compressed.GZIP) -> Tree:
    store = MemoryStore()
    descriptors = []
    for recipe in recipes:
        layer = images.layer(recipe if isinstance(recipe, bytes) else tar(recipe), compression=compression)
        if not any(layer.descriptor.digest == info.digest for info in store.walk()):
            with store.writer(layer.descriptor.digest) as writer:
                writer.write(layer.data)
                writer.commit(layer.descriptor.size, layer.descriptor.digest)
        descriptors.append(layer.descriptor)
    return Tree(descriptors, store)


def files(seen: Tree) -> dict[str, str]:
    """Path to what is there: `d`, `f:content`, `s:target`."""
    result = {}
    for node in seen.walk():
        if node.type.value == "file":
            with seen.open_node(node) as file, io.BufferedReader(file) as buffered:
                result[node.path] = "f:" + buffered.read().decode()
        elif node.type.value == "symlink":
            result[node.path] = "s:" + node.linkname
        else:
            result[node.path] = node.type.value[0]
    return result


class Broken(Exception):
    """The stack cannot be unpacked."""


def unpack(root: Path, recipes: Sequence[Recipe]) -> None:
    """Put the layers on a real directory, one after another, by the file system's own rules."""
    for recipe in recipes:
        mine: set[str] = set()
        for put in recipe:
            _apply(root, put, mine)


def on_disk(root: Path) -> dict[str, str]:
    result = {}
    for folder, directories, names in os.walk(root):
        for name in [*directories, *names]:
            path = Path(folder, name)
            key = str(path.relative_to(root))
            if path.is_symlink():
                result[key] = "s:" + os.readlink(path)
            elif path.is_dir():
                result[key] = "d"
            else:
                result[key] = "f:" + path.read_text()
    return result


def _real(root: Path, path: str) -> Path:
    """The place of `path`, its parents' links followed as if `root` were the root."""
    pending = [part for part in reversed(path.split("/")[:-1]) if part]
    done: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part in (".", ".."):
            del done[len(done) - (part == "..") :]
            continue
        here = root.joinpath(*done, part)
        if here.is_symlink():
            links += 1
            if links > 40:
                raise Broken("loop")
            target = os.readlink(here)
            done = [] if target.startswith("/") else done
            pending += [part for part in reversed(target.split("/")) if part]
        else:
            done.append(part)
    return root.joinpath(*done, path.rsplit("/", 1)[-1])


def _make_parents(root: Path, place: Path, mine: set[str]) -> None:
    for parent in reversed(place.relative_to(root).parents):
        here = root / parent
        if os.path.lexists(here) and not here.is_dir():
            raise Broken("a file where a directory should be")
        if not here.exists():
            here.mkdir()
            mine.add(str(parent))


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    elif os.path.lexists(place):
        place.unlink()


def _clear(root: Path, place: Path, mine: set[str]) -> bool:
    """Remove what lower layers have at `place`; True when something of this layer is left in it."""
    if place.is_dir() and not place.is_symlink():
        kept = [_clear(root, child, mine) for child in place.iterdir()]
        if any(kept):
            return True
    if str(place.relative_to(root)) in mine:
        return True
    _remove(place)
    return False


def _apply(root: Path, put: Put, mine: set[str]) -> None:
    if put.kind == "o":
        place = _real(root, put.path + "/x").parent
        for child in place.iterdir() if place.is_dir() else []:
            _clear(root, child, mine)
        return
    place = _real(root, put.path)
    if put.kind == "w":
        if os.path.lexists(place):
            _clear(root, place, mine)
        return
    _make_parents(root, place, mine)
    key = str(place.relative_to(root))
    if put.kind == "d":
        if not (place.is_dir() and not place.is_symlink()):
            _remove(place)
            place.mkdir()
    elif put.kind == "h":
        target = _real(root, put.value)
        if not os.path.lexists(target) or (target.is_dir() and not target.is_symlink()) or target == place:
            raise Broken("a hard link to nothing")
        if place.is_dir() and not place.is_symlink() and place in target.parents:
            raise Broken("a hard link into what it replaces")
        _remove(place)
        os.link(target, place, follow_symlinks=False)
    else:
        _remove(place)
        if put.kind == "f":
            place.write_text(put.value)
        else:
            place.symlink_to(put.value)
    # What was below a path that was replaced is not there any more.
    for other in [other for other in mine if other.startswith(key + "/")]:
        if not os.path.lexists(root / other):
            mine.discard(other)
    mine.add(key)
