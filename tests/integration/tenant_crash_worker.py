"""What a tenant does, killed at each point: the process that `test_tenant_crash` looks after.

    tenant_crash_worker.py ROOT    in one copy of the work for each k: die at the k-th change of disk or database

What was acknowledged goes to stdout as lines of JSON: the step, what was done, and to which blob.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blobtee.content import Database, LocalStore
from blobtee.errors import AlreadyExists
from blobtee.oci import Digest
from blobtee.plugin.references import References
from blobtee.plugin.sweeping import Sweeper
from blobtee.plugin.tenants import Tenant

CALLS = ("fsync", "fdatasync", "rename", "unlink", "rmdir", "link", "chmod")
BLOBS = (b"first" * 20_000, b"", b"third" * 10)

_write = os.write


def put(tenant: Tenant, data: bytes) -> None:
    digest = Digest.of(data)
    with suppress(AlreadyExists), tenant.writer(f"ref of {digest}", total=len(data)) as writer:
        writer.truncate(0)
        writer.write(data)
        writer.commit(len(data), digest, {"size": str(len(data))})


def work(store: LocalStore, acknowledge: Callable[[str, int], None]) -> None:
    """Two tenants bring, let go of, and bring again, with sweeps in between."""
    references = References(store.metadata)
    sweeper = Sweeper(store, references)
    one, two = (Tenant(name, store, references) for name in ("one", "two"))
    for number, data in enumerate(BLOBS):
        put(one, data)
        acknowledge("held by one", number)
    two.info(Digest.of(BLOBS[0]))
    acknowledge("held by two", 0)
    for number in (0, 2):
        acknowledge("let go by one", number)
        one.delete(Digest.of(BLOBS[number]))
    sweeper.sweep()
    put(one, BLOBS[2])
    acknowledge("held by one", 2)
    acknowledge("let go by two", 0)
    two.delete(Digest.of(BLOBS[0]))
    put(two, BLOBS[0])
    acknowledge("held by two", 0)
    sweeper.sweep()


def die_at(k: int, calls: Sequence[str] = CALLS) -> None:
    """Let this process be killed before its k-th change: a call of `calls`, or either end of a transaction."""
    left = k

    def tick() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            tick()
            return call(*args, **kwargs)

        return wrapped

    for name in calls:
        setattr(os, name, counted(getattr(os, name)))
    begin = Database.transaction

    @contextmanager
    def transaction(database: Database) -> Iterator[Any]:
        tick()
        with begin(database) as connection:
            yield connection
            tick()

    setattr(Database, "transaction", transaction)  # noqa: B010


def steps(root: Path) -> None:
    for k in itertools.count(1):
        child = os.fork()
        if child == 0:
            with LocalStore(root / str(k)) as store:
                die_at(k)
                work(store, functools.partial(say, k))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        say(k, "ended", 0)
        if status == 0:
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, f"step {k} failed by itself: {status}"


def say(step: int, what: str, number: int) -> None:
    _write(1, json.dumps([step, what, number]).encode() + b"\n")


if __name__ == "__main__":
    steps(Path(sys.argv[1]))
