"""Works on a store and dies on the way: the process that `test_crash` kills.

    crash_worker.py steps ROOT    in one copy of the work for each k: die at the k-th call that touches the disk
    crash_worker.py loop ROOT     work until somebody kills it

What was acknowledged goes to stdout as lines of JSON, each after its call has returned.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blobtee.content import LocalStore
from blobtee.errors import AlreadyExists, NotFound
from blobtee.oci import Descriptor, Digest

CALLS = (
    "open",
    "pwrite",
    "write",
    "fsync",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
    "ftruncate",
    "posix_fallocate",
    "chmod",
)
"""Everything by which the store changes the disk, SQLite aside."""

_write = os.write


@functools.cache
def blob(number: int) -> bytes:
    """Sizes on both sides of the allocation limit, and one empty blob."""
    size = (70_000, 10, 1_300_000)[number % 3] if number else 0
    return random.Random(number).randbytes(size)


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def labels_of(number: int) -> dict[str, str]:
    return {"number": str(number)}


def ref_of(number: int) -> str:
    return f"ref/{number}"


def acknowledge(kind: str, number: int) -> None:
    _write(1, json.dumps([kind, number]).encode() + b"\n")


def work(store: LocalStore, numbers: Iterator[int]) -> None:
    """For each number: a blob in two sittings and a name; every third blob is then labelled, every fifth deleted."""
    for number in numbers:
        data = blob(number)
        half = len(data) // 2
        try:
            with store.writer(ref_of(number), total=len(data), expected=digest_of(data)) as writer:
                writer.write(data[writer.status.offset : half])
            with store.writer(ref_of(number), total=len(data)) as writer:
                writer.write(data[writer.status.offset :])
                writer.commit(len(data), digest_of(data), labels_of(number))
        except AlreadyExists:
            pass
        acknowledge("put", number)
        store.layout.set(f"name:{number}", Descriptor("application/x", digest_of(data), len(data)))
        acknowledge("name", number)
        if number % 3 == 0:
            store.update(digest_of(data), {"more": "yes"})
            acknowledge("label", number)
        if number % 5 == 4:
            acknowledge("deleting", number)
            with contextlib.suppress(NotFound):
                store.delete(digest_of(data))
            acknowledge("deleted", number)


def die_at(k: int, *, torn: bool) -> None:
    """Let this process be killed at its k-th call out of CALLS: before it, or with half of a write done."""
    left = k

    def wrap(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if torn and name == "pwrite":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name), name))


def steps(root: Path) -> None:
    k = 0
    while True:
        k += 1
        acknowledge("step", k)
        child = os.fork()
        if child == 0:
            die_at(k, torn=k % 2 == 0)
            with LocalStore(root / str(k)) as store:
                work(store, iter(range(5)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, f"step {k} failed by itself: {status}"


def loop(root: Path) -> None:
    with LocalStore(root) as store:
        acknowledge("open", 0)
        while True:
            work(store, iter(random.sample(range(40), 40)))


if __name__ == "__main__":
    {"steps": steps, "loop": loop}[sys.argv[1]](Path(sys.argv[2]))
