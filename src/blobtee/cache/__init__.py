"""Refs over layers, and remotes of them: the room of `spec/remote.md`."""

from blobtee.cache.handlers import Handler, Handlers, Means, current_session, using_session
from blobtee.cache.leases import Lease, Leases
from blobtee.cache.manager import CacheManager, MetadataStore
from blobtee.cache.records import Kind, Recipe, Record
from blobtee.cache.ref import Ref
from blobtee.cache.remote import MAX_REMOTES, LazyMultiProvider, LazyProvider, RefConfig, Remote

__all__ = [
    "MAX_REMOTES",
    "CacheManager",
    "Handler",
    "Handlers",
    "Kind",
    "LazyMultiProvider",
    "LazyProvider",
    "Lease",
    "Leases",
    "Means",
    "MetadataStore",
    "Recipe",
    "Record",
    "Ref",
    "RefConfig",
    "Remote",
    "current_session",
    "using_session",
]
