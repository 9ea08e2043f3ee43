"""OCI image layouts (image specification, image-layout.md): in a directory, as source and sink.

A layout in a tar is read through the same class, with other files under it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from blobtee.content import Layout, ReaderAt
from blobtee.content.files import FileReader, make_directory, os_errors, sync_directory, write_all
from blobtee.content.layout import IMAGE_NAME, INDEX_FILE, REF_NAME
from blobtee.errors import (
    DigestMismatch,
    InvalidArgument,
    InvalidDocument,
    InvalidReference,
    NotFound,
    SizeMismatch,
    TooLarge,
)
from blobtee.oci import Descriptor, Digest, Index, Manifest, Reference, parse_document
from blobtee.oci.documents import MAX_DOCUMENT
from blobtee.registry.fetcher import DocumentReader
from blobtee.transfer.places import Moved, Source, pieces


class Files(Protocol):
    """Files by their path below some root."""

    def open(self, path: str) -> ReaderAt:
        """`NotFound`."""
        ...

    def close(self) -> None: ...


def open_file(path: Path) -> FileReader:
    """The file at `path`. `InvalidArgument` for what cannot be read at random: a pipe, a device, a directory."""
    with os_errors(f"read {path}"):
        # Without O_NONBLOCK a pipe would wait here for its writer, out of reach of any cancellation.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode):
            return FileReader(fd, info.st_size, str(path))
        os.close(fd)
    raise InvalidArgument(f"{path} is not a file; save the image to one first")


class Directory:
    """`Files` below a directory. Only paths made of digests and fixed names are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, path: str) -> ReaderAt:
        return open_file(self.root / path)

    def close(self) -> None:
        pass


def read_small(files: Files, path: str) -> bytes:
    """A document whole; `TooLarge` beyond 8 MiB."""
    with files.open(path) as reader:
        if reader.size > MAX_DOCUMENT:
            raise TooLarge(f"{path} has {reader.size} bytes; the limit is {MAX_DOCUMENT}")
        return reader.read_at(0, reader.size)


def blob_path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


class LayoutSource:
    """An image in a layout. `wanted` is a name in its index; "" means the only image there."""

    def __init__(self, files: Files, what: str, wanted: str = "") -> None:
        self._files = files
        self._what = what
        self._wanted = wanted
        self._name = ""

    @property
    def name(self) -> str:
        return self._name

    def root(self) -> Descriptor:
        raw = read_small(self._files, INDEX_FILE)
        try:
            index = json.loads(raw)
        except (ValueError, RecursionError):
            raise InvalidDocument(f"{self._what}: {INDEX_FILE} is not JSON") from None
        entries = index.get("manifests") if isinstance(index, dict) else None
        if not isinstance(entries, list):
            raise InvalidDocument(f"{self._what}: {INDEX_FILE} lists no manifests")
        images = [Descriptor.from_json(entry) for entry in entries]
        chosen = [image for image in images if not self._wanted or self._wanted in _names(image)]
        if not chosen:
            known = sorted({name for image in images for name in _names(image)})
            reason = f"no image {self._wanted!r}" if self._wanted else "no image"
            raise NotFound(f"{self._what}: {reason}; there is: {', '.join(known)[:500] or 'none'}")
        if len({image.digest for image in chosen}) > 1 and not self._wanted:
            known = sorted({name for image in images for name in _names(image)})
            raise NotFound(
                f"{self._what}: several images, so name one: {', '.join(known)[:500] or 'they have no names'}"
            )
        root = chosen[0]
        self._name = self._wanted or next(iter(_names(root)), "")
        return Descriptor(root.media_type, root.digest, root.size)

    def document(self, desc: Descriptor) -> Manifest | Index:
        raw = read_small(self._files, blob_path(desc.digest))
        if len(raw) != desc.size:
            raise SizeMismatch(f"{self._what}: {desc.digest}", desc.size, len(raw))
        document = parse_document(raw, desc.media_type)
        if document.digest != desc.digest:
            raise DigestMismatch(self._what, desc.digest, document.digest)
        return document

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        return self._files.open(blob_path(desc.digest))

    def repositories(self, desc: Descriptor, host: str) -> Sequence[str]:
        return []

    def __enter__(self) -> LayoutSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


class LayoutSink:
    """A layout in a directory, made when missing. Each blob is complete, checked and synced before it has its name.

    So one that is there and as long as it should be is trusted, whoever wrote it, and not read: a copy would cost as
    much as the first one each time. One that is damaged shows to who reads it, as all readers of layouts check.
    """

    at_once = 4
    single = False

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._name = name

    def blob(self, desc: Descriptor, source: Source) -> Moved:
        with source.reader_at(desc) as reader:
            return self._keep(desc, reader)

    def _keep(self, desc: Descriptor, reader: ReaderAt) -> Moved:
        target = self._root / blob_path(desc.digest)
        with os_errors(f"write {target}"):
            if target.exists() and target.stat().st_size == desc.size:
                return Moved(desc, "exists")
            make_directory(target.parent)
            # On the same file system, and nothing that could be taken for a blob.
            unfinished = self._root / f".{desc.digest.hex[:16]}-{secrets.token_hex(4)}"
            fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                try:
                    offset = 0
                    for piece in pieces(reader, desc):
                        write_all(fd, piece, offset)
                        offset += len(piece)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.replace(unfinished, target)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(unfinished)
                raise
            sync_directory(target.parent)
        return Moved(desc, "copied", desc.size)

    def document(self, document: Manifest | Index) -> None:
        self._keep(document.descriptor, DocumentReader(document.raw))

    def finish(self, document: Manifest | Index, source: Source) -> str:
        self.document(document)
        name = self._name or tag_of(source.name)
        layout = Layout(self._root)
        layout.ensure()
        layout.set(name, document.descriptor)
        return f"oci:{self._root}:{name}"

    def __enter__(self) -> LayoutSink:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def tag_of(name: str) -> str:
    """What an image from `name` is called in a layout: its tag, `latest` when it has none."""
    try:
        return Reference.parse(name).tag or "latest"
    except InvalidReference:
        return "latest"


def _names(desc: Descriptor) -> list[str]:
    """What an entry of an index may be called, the full name first."""
    found = (desc.annotations.get(key) for key in (IMAGE_NAME, REF_NAME))
    return list(dict.fromkeys(name for name in found if name))
