"""Names of images in an OCI image layout (image specification, image-layout.md).

`index.json` is the truth for names: skopeo, crane and BuildKit read it, and may have written it. So entries of theirs
and members unknown here are kept as they are.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blobtee.content.files import os_errors, read_small, replace_file, sync_directory, sync_file
from blobtee.content.locks import Locks
from blobtee.errors import InvalidArgument, InvalidDocument, NotFound, TooLarge, from_os_error
from blobtee.oci import Descriptor, Digest, mediatypes
from blobtee.oci.documents import to_raw

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"
"""containerd's annotation for a full name, where `REF_NAME` may be a mere tag."""

MAX_INDEX = 64 << 20
"""Bytes of an index.json that are read: some 100,000 images."""

_VERSION = "1.0.0"
_TICK_NS = 2_000_000_000
"""More than the steps in which any file system counts the times of changes."""


class Layout:
    """The names in the layout at `root`. Thread-safe, also between processes: changes take turns."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._index = root / INDEX_FILE
        self._turn = threading.Lock()

    def ensure(self) -> None:
        """Make the two files where they are missing."""
        with os_errors(f"make an OCI layout in {self.root}"):
            if self._complete():
                return
            with self._changing():
                if not (self.root / LAYOUT_FILE).exists():
                    replace_file(self.root / LAYOUT_FILE, json.dumps({"imageLayoutVersion": _VERSION}).encode())
                if not self._index.exists():
                    self._write({"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": []})

    def names(self) -> dict[str, Descriptor]:
        """What each name stands for, in the order of the file; entries without a name are left out.

        No file means no names; `InvalidDocument` for one that is no index.
        """
        with os_errors(f"read {self._index}"):
            entries = self._entries(self._read())
        # The first of equal names counts, as it does for skopeo.
        found: dict[str, Descriptor] = {}
        for entry in entries:
            name = _name(entry)
            if name and name not in found:
                found[name] = Descriptor.from_json(entry)
        return found

    def all(self) -> list[Descriptor]:
        """What the file lists, named or not: everything of it belongs to the layout. Errors as for `names`."""
        with os_errors(f"read {self._index}"):
            return [Descriptor.from_json(entry) for entry in self._entries(self._read())]

    def fingerprint(self) -> Digest:
        """Changes whenever the file does."""
        with os_errors(f"read {self._index}"):
            return Digest.of(to_raw(self._read()))

    def settle(self) -> None:
        """Have the file survive as it is: before that, what it does not name any more must not go, as a loss of power
        may bring the name back. Whoever wrote it may have been killed, or be another program."""
        with os_errors(f"keep {self._index}"), suppress(FileNotFoundError):
            sync_file(self._index)
            sync_directory(self.root)

    def watch(self) -> Callable[[], bool]:
        """A question: is the file what it is now? Most often it costs one look at the file's times.

        A file whose inode changed longer than a moment before it was read cannot have been written since without
        getting another time; of one that is younger, the contents are compared. The question is for one thread.
        """

        def look() -> tuple[tuple[int, ...] | None, int, Digest]:
            with os_errors(f"read {self._index}"):
                return self._stamp(), time.time_ns(), self.fingerprint()

        stamp, begun, fingerprint = look()

        def is_unchanged() -> bool:
            nonlocal stamp, begun
            with os_errors(f"read {self._index}"):
                now = self._stamp()
            if now == stamp and (now is None or now[-1] < begun - _TICK_NS):
                return True
            stamp, begun, current = look()
            return current == fingerprint

        return is_unchanged

    def get(self, name: str) -> Descriptor:
        """What `name` stands for; `NotFound`. Entries of other names do not matter, whatever they are."""
        with os_errors(f"read {self._index}"):
            entries = self._entries(self._read())
        for entry in entries:
            if _name(entry) == name:
                return Descriptor.from_json(entry)
        raise NotFound(f"no image {name[:300]!r} in {self.root}")

    def set(self, name: str, desc: Descriptor) -> None:
        """Let `name` stand for `desc`, durably, whatever it stood for before.

        `TooLarge` when the index would be too long to be read again; then it stays as it was.
        """
        if not name:
            raise InvalidArgument("an image needs a name")
        entry = desc.annotated({REF_NAME: name, IMAGE_NAME: name}).to_json()

        def change(entries: list[Any]) -> list[Any]:
            return [*(other for other in entries if _name(other) != name), entry]

        self._change(change)

    def remove(self, name: str) -> None:
        """Forget `name`, durably; `NotFound`."""

        def change(entries: list[Any]) -> list[Any]:
            kept = [other for other in entries if _name(other) != name]
            if len(kept) == len(entries):
                raise NotFound(f"no image {name[:300]!r} in {self.root}")
            return kept

        self._change(change)

    def _change(self, change: Callable[[list[Any]], list[Any]]) -> None:
        with os_errors(f"write {self._index}"), self._changing():
            index = self._read()
            self._write({**index, "manifests": change(self._entries(index))})

    def _stamp(self) -> tuple[int, ...] | None:
        """What the file system says of the file, the time of its inode's last change at the end; None without one."""
        try:
            found = os.stat(self._index)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _complete(self) -> bool:
        return (self.root / LAYOUT_FILE).exists() and self._index.exists()

    def _read(self) -> dict[str, Any]:
        try:
            if os.stat(self._index).st_size > MAX_INDEX:
                raise TooLarge(f"{self._index} is larger than {MAX_INDEX} bytes")
            raw = read_small(self._index, MAX_INDEX)
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": []}
        try:
            index = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise InvalidDocument(f"{self._index} is not JSON: {str(error)[:100]}") from None
        if not isinstance(index, dict):
            raise InvalidDocument(f"{self._index} is no image index")
        return index

    def _entries(self, index: dict[str, Any]) -> list[Any]:
        entries = index.get("manifests")
        if entries is None:
            return []
        if not isinstance(entries, list):
            raise InvalidDocument(f"the manifests in {self._index} are no list")
        return entries

    def _write(self, index: dict[str, Any]) -> None:
        try:
            # ASCII: what others wrote may hold halves of surrogate pairs, which UTF-8 cannot say.
            raw = json.dumps(index, separators=(",", ":"), allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise InvalidDocument(f"{self._index} holds what cannot be written back: {error}") from None
        if len(raw) > MAX_INDEX:
            raise TooLarge(f"{self._index} would be larger than {MAX_INDEX} bytes; remove some names first")
        replace_file(self._index, raw)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._turn:
            try:
                locks = Locks(self.root)
            except OSError as error:
                raise from_os_error(error, f"change {self._index}") from error
            try:
                with locks.holding("index.json"):
                    yield
            finally:
                locks.close()


def _name(entry: Any) -> str | None:
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    if not isinstance(annotations, dict):
        return None
    name = annotations.get(IMAGE_NAME) or annotations.get(REF_NAME)
    return name if isinstance(name, str) else None
