"""Blobs by digest: protocols, stores, copying.

`LocalStore` keeps them on disk, `MemoryStore` in memory; both are a `Store`, which is cut into the small protocols of
`content.api`. `copy` brings a whole blob from any `Provider` into a store.
"""

from blobtee.content.api import (
    Info,
    InfoProvider,
    Ingester,
    IngestManager,
    Manager,
    PartialProvider,
    Provider,
    ReaderAt,
    ReaderFile,
    Status,
    Store,
    Writer,
    total_size,
)
from blobtee.content.copy import copy
from blobtee.content.database import Database
from blobtee.content.digester import Hash, digester
from blobtee.content.layout import Layout
from blobtee.content.local import LocalStore
from blobtee.content.memory import MemoryStore
from blobtee.content.multi import MultiProvider
from blobtee.content.trust import Trust

__all__ = [
    "Database",
    "Hash",
    "Info",
    "InfoProvider",
    "IngestManager",
    "Ingester",
    "Layout",
    "LocalStore",
    "Manager",
    "MemoryStore",
    "MultiProvider",
    "PartialProvider",
    "Provider",
    "ReaderAt",
    "ReaderFile",
    "Status",
    "Store",
    "Trust",
    "Writer",
    "copy",
    "digester",
    "total_size",
]
