"""Several threads put blobs into a store, to be recorded: `committing.py ROOT`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blobtee.content import LocalStore
from blobtee.oci import Digest
from tests.integration.power.recording import note

THREADS, EACH = 4, 4


def data_of(thread: int, number: int) -> bytes:
    """Of several blocks, and of more bytes than are waited for together."""
    return f"{thread} {number} ".encode() * (200_000 if number == 1 else 3_000)


DATA = {Digest.of(data): data for data in (data_of(t, n) for t in range(THREADS) for n in range(EACH))}


def commit(store: LocalStore, thread: int) -> None:
    for number in range(EACH):
        data = data_of(thread, number)
        # Of every other one the size is announced, and its sync begins with its last byte. One was written anew.
        with store.writer(f"{thread} {number}", total=len(data) if number % 2 == 0 else 0) as writer:
            if number == 2:
                writer.write(bytes(len(data)))
                writer.truncate(len(data) // 3)
                writer.truncate(0)
            writer.write(data[:5000])
            writer.write(data[5000:])
            digest = writer.commit().digest
        note(digest)


if __name__ == "__main__":
    with LocalStore(Path(sys.argv[1])) as store:
        note("opened")
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda thread: commit(store, thread), range(THREADS)))
    note("ended")
