"""Addresses as places that can be read from or written to."""

from __future__ import annotations

from blobtee.oci import Reference
from blobtee.registry import Registry
from blobtee.transfer.addresses import Address, Form
from blobtee.transfer.archives import DockerArchiveSink, DockerArchiveSource, OciArchiveSink
from blobtee.transfer.layouts import Directory, LayoutSink, LayoutSource
from blobtee.transfer.places import Sink, Source
from blobtee.transfer.remote import RemoteSink, RemoteSource, default_registry
from blobtee.transfer.tarfiles import TarFiles


def open_source(address: Address, registry: Registry | None) -> Source:
    """The image at `address`; use it as a context manager. `NotFound` when there is no such file."""
    if isinstance(address, Reference):
        return RemoteSource(registry or default_registry(), address)
    if address.form is Form.DOCKER_ARCHIVE:
        return DockerArchiveSource(address.path, address.name)
    files = Directory(address.path) if address.form is Form.LAYOUT else TarFiles(address.path)
    return LayoutSource(files, str(address.path), address.name)


def open_sink(address: Address, registry: Registry | None) -> Sink:
    """The place to write an image to; use it as a context manager."""
    if isinstance(address, Reference):
        return RemoteSink(registry or default_registry(), address)
    if address.form is Form.LAYOUT:
        return LayoutSink(address.path, address.name)
    if address.form is Form.OCI_ARCHIVE:
        return OciArchiveSink(address.path, address.name)
    return DockerArchiveSink(address.path, address.name)
