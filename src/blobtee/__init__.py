"""blobtee: bytes of blobs, proven, from wherever they are.

What is named here is imported when it is first used, so that importing blobtee itself costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from blobtee import errors
from blobtee._version import __version__
from blobtee.errors import BlobteeError

if TYPE_CHECKING:
    from blobtee.cache import CacheManager, RefConfig, Remote
    from blobtee.compression import Compression
    from blobtee.content import LocalStore, MemoryStore
    from blobtee.image import Image
    from blobtee.oci import Descriptor, Digest, Platform, Reference
    from blobtee.registry import Registry
    from blobtee.transfer import build, convert, copy, inspect, open_image, pull, push, verify

__all__ = [
    "BlobteeError",
    "CacheManager",
    "Compression",
    "Descriptor",
    "Digest",
    "Image",
    "LocalStore",
    "MemoryStore",
    "Platform",
    "RefConfig",
    "Reference",
    "Registry",
    "Remote",
    "__version__",
    "build",
    "convert",
    "copy",
    "errors",
    "inspect",
    "open_image",
    "pull",
    "push",
    "verify",
]

_HOMES = {
    "CacheManager": "blobtee.cache",
    "Compression": "blobtee.compression",
    "Descriptor": "blobtee.oci",
    "Digest": "blobtee.oci",
    "Image": "blobtee.image",
    "LocalStore": "blobtee.content",
    "MemoryStore": "blobtee.content",
    "Platform": "blobtee.oci",
    "RefConfig": "blobtee.cache",
    "Reference": "blobtee.oci",
    "Registry": "blobtee.registry",
    "Remote": "blobtee.cache",
    "build": "blobtee.transfer",
    "convert": "blobtee.transfer",
    "copy": "blobtee.transfer",
    "inspect": "blobtee.transfer",
    "open_image": "blobtee.transfer",
    "pull": "blobtee.transfer",
    "push": "blobtee.transfer",
    "verify": "blobtee.transfer",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'blobtee' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
