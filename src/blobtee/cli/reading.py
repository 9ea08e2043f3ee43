"""What `cat` and `ls` read: an image of the store, or at an address of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blobtee import transfer
from blobtee.cli.session import Session
from blobtee.content import LocalStore
from blobtee.errors import InvalidReference
from blobtee.image import Image
from blobtee.oci import Platform, Reference
from blobtee.registry import Registry
from blobtee.transfer import FileAddress


@contextmanager
def opened(
    session: Session, store: LocalStore, registry: Registry, name: str, platform: Platform | None
) -> Iterator[Image]:
    """The image that the store knows as `name`. A layout's or archive's is brought into the store first: what is read
    was checked then. It gets no name there: many are called `latest`, or nothing."""
    try:
        address = transfer.parse(name)
    except InvalidReference:
        address = Reference("", "")  # a name that some other tool gave; the store may know it
    if isinstance(address, FileAddress) and name not in store.layout.names():
        image = transfer.pull(name, store, platform=platform, registry=registry, name="")
    else:
        image = transfer.open_image(name, store, platform=platform, registry=registry)
    with image:
        yield image
