"""Registries (OCI distribution): resolve, read, push, list. See `Registry`."""

from blobtee.registry.auth import Credential, Credentials, FileCredentials, NoCredentials
from blobtee.registry.client import Registry, Repository
from blobtee.registry.hosts import Host, Hosts
from blobtee.registry.pusher import Pushed
from blobtee.registry.settings import Settings
from blobtee.registry.streams import BlobSource

__all__ = [
    "BlobSource",
    "Credential",
    "Credentials",
    "FileCredentials",
    "Host",
    "Hosts",
    "NoCredentials",
    "Pushed",
    "Registry",
    "Repository",
    "Settings",
]
