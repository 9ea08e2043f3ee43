"""Refs over layers, and remotes of them: the room of `spec/remote.md`."""

from blobtee.cache.collect import GRACE_SECONDS, Collected, Share
from blobtee.cache.handlers import Handler, Handlers, Means, current_session, using_session
from blobtee.cache.leases import Lease, Leases
from blobtee.cache.manager import CacheManager, MetadataStore
from blobtee.cache.records import Kind, Recipe, Record
from blobtee.cache.ref import Ref
from blobtee.cache.remote import MAX_REMOTES, LazyMultiProvider, LazyProvider, RefConfig, Remote

__all__ = [
    "GRACE_SECONDS",
    "MAX_REMOTES",
    "CacheManager",
    "Collected",
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
    "Share",
    "current_session",
    "using_session",
]
