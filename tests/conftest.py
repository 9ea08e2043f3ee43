"""What any test may ask for."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blobtee.content import database


@pytest.fixture(scope="session", autouse=True)
def small_ballast() -> Iterator[None]:
    """Tests make thousands of stores, and pytest keeps them for a while."""
    before, database.BALLAST = database.BALLAST, 4096
    yield
    database.BALLAST = before


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """In memory, where there is such a place: hundreds of stores that are synced at every step."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="blobtee-crash-") as path:
        yield Path(path)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT interrupts, also where it is ignored from the start: shells have it so for what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def count_descriptors() -> Callable[[], int]:
    """How many this process has open. What other tests left to the garbage collector goes before, not meanwhile."""
    gc.collect()
    return lambda: len(os.listdir("/proc/self/fd"))
