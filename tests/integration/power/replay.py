"""What a power cut may leave of what `recorder.c` has recorded.

What was synced is there. Of what was not, any part may be: of each block of a file (4 KiB, or a sector of 512 bytes)
the state after any of the writes to it since; of names, those after a prefix of what was done to them all, as a file
system with a journal has it, or after any choice of it that does not contradict itself, as POSIX allows. A file's sync
says nothing of its name, its folder's does.
"""

from __future__ import annotations

import os
import random
import struct
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_RECORD = struct.Struct("=IIIIQQ")
WRITE, TRUNCATE, SYNC_BEGIN, SYNC_END, CREATE, MKDIR, RENAME, UNLINK, RMDIR, LINK, NOTE = range(1, 12)
_SECTOR, _BLOCK = 512, 4096
_FORGOTTEN = "-shm"
"""Files that nobody looks at after the machine was down: SQLite makes them anew."""


@dataclass(frozen=True)
class Event:
    kind: int
    file: int
    """Which file or folder; numbers that the system gives out again are different files here."""
    offset: int
    """Of a sync: its number, as several of a file may go on at once."""
    data: bytes
    names: tuple[str, ...] = ()
    """Paths below the root, "" for the root itself."""


@dataclass
class Cut:
    """A state that the disk may be in at a time. `files` by path; `number` says which file that is."""

    time: int
    files: dict[str, bytes] = field(default_factory=dict)
    number: dict[str, int] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)


class Recording:
    """Everything that happened, in order: event n is at time n + 1, and a cut at time t comes after it."""

    def __init__(self, log: Path, root: Path) -> None:
        self.events = list(_events(log.read_bytes(), str(root)))
        self._of_file: dict[int, list[int]] = defaultdict(list)
        # Of each file: when it was synced, and up to what time that is good.
        self._synced: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        self._names: list[int] = []
        begun: dict[int, int] = {}
        for at, event in enumerate(self.events):
            if event.kind in (WRITE, TRUNCATE):
                self._of_file[event.file].append(at)
            elif event.kind == SYNC_BEGIN:
                begun[event.offset] = at
            elif event.kind == SYNC_END:
                ends, good = self._synced[event.file]
                ends.append(at)
                good.append(max(begun.pop(event.offset), good[-1] if good else 0))
            elif event.kind != NOTE:
                self._names.append(at)
        self._parents = self._folders_changed()
        self.inodes = {event.file: event.offset for event in self.events if event.kind == CREATE}
        """The number that each file had in the system."""
        self.noted = next(at + 1 for at, event in enumerate(self.events) if event.kind == NOTE)
        """The time from which on there is a note."""

    def _folders_changed(self) -> dict[int, list[int]]:
        """By event: the folders in which it changed names."""
        made: dict[str, int] = {}
        changed: dict[int, list[int]] = {}
        for at in self._names:
            event = self.events[at]
            if event.kind == MKDIR:
                made[event.names[0]] = event.file
            changed[at] = [made[_parent(name)] for name in event.names if name and _parent(name) in made]
        return changed

    def notes(self, time: int) -> list[str]:
        return [event.names[0] for event in self.events[:time] if event.kind == NOTE]

    def durable(self, file: int, time: int) -> int:
        """Up to which event all of the file is on the disk at `time`."""
        ends, good = self._synced[file]
        at = bisect_right(ends, time - 1)
        return good[at - 1] if at else -1

    def content(self, file: int, upto: int) -> bytearray:
        """The file as it is after the events before `upto`."""
        content = bytearray()
        for at in self._of_file[file]:
            if at >= upto:
                break
            _apply(content, self.events[at])
        return content

    def cut(self, time: int, draw: random.Random) -> Cut:
        """One of the states that may be found after a cut at `time`."""
        tree, folders = self._tree(time, draw)
        cut = Cut(time, folders=sorted(folders))
        grain = draw.choice((_SECTOR, _BLOCK, _BLOCK))
        luck = draw.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        kept: dict[int, bytes] = {}
        for path, file in sorted(tree.items()):
            if path.endswith(_FORGOTTEN):
                continue
            if file not in kept:
                kept[file] = self._torn(file, time, grain, luck, draw)
            cut.files[path], cut.number[path] = kept[file], file
        return cut

    def _torn(self, file: int, time: int, grain: int, luck: float, draw: random.Random) -> bytes:
        durable = self.durable(file, time)
        content = self.content(file, durable)
        pending = [self.events[at] for at in self._of_file[file] if durable <= at < time]
        if not pending:
            return bytes(content)
        size = len(content)
        blocks: dict[int, list[bytes]] = defaultdict(list)
        sizes = [size]
        for event in pending:
            before = len(content)
            _apply(content, event)
            if len(content) != before:
                sizes.append(len(content))
            if event.kind == WRITE:
                for block in range(event.offset // grain, -(-(event.offset + len(event.data)) // grain)):
                    blocks[block].append(bytes(content[block * grain : (block + 1) * grain]))
        torn = self.content(file, durable)
        for block, states in blocks.items():
            if draw.random() < luck:
                state = states[-1] if draw.random() < 0.5 else draw.choice(states)
                end = block * grain + len(state)
                torn.extend(bytes(max(0, end - len(torn))))
                torn[block * grain : end] = state
        kept = sizes[-1] if draw.random() < luck else draw.choice(sizes)
        return bytes(torn[:kept].ljust(kept, b"\0"))

    def _tree(self, time: int, draw: random.Random) -> tuple[dict[str, int], set[str]]:
        tree: dict[str, int] = {}
        folders: set[str] = set()
        for at in self._kept_names(time, draw):
            event = self.events[at]
            first = event.names[0]
            if event.kind == CREATE:
                tree[first] = event.file
            elif event.kind == MKDIR:
                folders.add(first)
            elif event.kind == RENAME:
                if first in tree:
                    tree[event.names[1]] = tree.pop(first)
            elif event.kind == LINK:
                if first in tree:
                    tree[event.names[1]] = tree[first]
            elif event.kind == UNLINK:
                tree.pop(first, None)
            else:
                folders.discard(first)
        return tree, folders

    def _kept_names(self, time: int, draw: random.Random) -> list[int]:
        done = [at for at in self._names if at < time]
        if draw.random() < 0.5:
            # A journal: any sync that has ended brought all that was before it along.
            settled = max((self.durable(file, time) for file in self._synced), default=-1)
            first = bisect_right(done, settled)
            return done[: draw.randint(first, len(done))]
        forced: set[int] = set()
        needed: set[str] = set()
        for at in reversed(done):
            names = self.events[at].names
            if needed & {*names} or any(at < self.durable(folder, time) for folder in self._parents[at]):
                forced.add(at)
                for name in names:
                    needed |= {name, *_ancestors(name)}
        luck = draw.choice((0.0, 0.3, 0.7, 1.0))
        kept: list[int] = []
        dropped: set[str] = set()
        for at in done:
            names = self.events[at].names
            touched = {*names}.union(*(_ancestors(name) for name in names))
            if at in forced or (draw.random() < luck and not touched & dropped):
                kept.append(at)
            else:
                dropped |= {*names}
        return kept


def _apply(content: bytearray, event: Event) -> None:
    if event.kind == TRUNCATE:
        del content[event.offset :]
        content.extend(bytes(event.offset - len(content)))
        return
    end = event.offset + len(event.data)
    content.extend(bytes(max(0, end - len(content))))
    content[event.offset : end] = event.data


def _events(raw: bytes, root: str) -> Iterator[Event]:
    numbers: dict[int, int] = {}
    made = at = 0
    while at < len(raw):
        kind, first_nbytes, second_nbytes, _, inode, offset = _RECORD.unpack_from(raw, at)
        at += _RECORD.size
        first = raw[at : at + first_nbytes]
        second = raw[at + first_nbytes : at + first_nbytes + second_nbytes]
        at += first_nbytes + second_nbytes
        if kind in (CREATE, MKDIR):
            numbers[inode] = made
            made += 1
        if kind in (WRITE, TRUNCATE, SYNC_BEGIN, SYNC_END):
            if inode not in numbers:
                continue  # a file that was not made here: on the same file system, elsewhere
            yield Event(kind, numbers[inode], offset, first)
        elif kind == NOTE:
            yield Event(kind, -1, 0, b"", (first.decode(),))
        else:
            names = tuple(os.path.relpath(name.decode(), root) for name in (first, second) if name)
            yield Event(kind, numbers.get(inode, -1), inode, b"", tuple("" if name == "." else name for name in names))


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _ancestors(name: str) -> set[str]:
    found = set()
    while name := _parent(name):
        found.add(name)
    return found
