"""`blobtee cat`."""

from __future__ import annotations

import contextlib

import click

from blobtee.cli.options import trust_option
from blobtee.cli.output import Output
from blobtee.cli.reading import opened
from blobtee.cli.session import PlatformType, Session, verb
from blobtee.content import LocalStore, Provider
from blobtee.errors import InvalidDigest, NotFound
from blobtee.image import Image
from blobtee.oci import Descriptor, Digest, Platform
from blobtee.registry import Registry
from blobtee.transfer.images import find
from blobtee.transfer.places import pieces


@click.command()
@click.argument("name", metavar="REF")
@click.argument("path", required=False)
@click.option("--platform", type=PlatformType(), help="Image of an index; default: this machine's, or the one pulled.")
@trust_option()
@verb(remote=True)
def command(session: Session, name: str, path: str | None, platform: Platform | None, trust: str) -> int:
    """Print a manifest, a blob, or a file inside an image.

    REF alone is the image's manifest; REF@DIGEST one of its blobs; a DIGEST alone any blob of the store. With PATH it
    is that file in the image, links followed. For that the layers that the answer needs are brought, and of those that
    have a table of contents only the parts; docs/formats.md says which do.

    \b
    Examples:
      blobtee cat python:3.12
      blobtee cat python:3.12 /etc/os-release
      blobtee cat sha256:4bc453b53cb3d914b45f4b250294236adba2c0e09ff6f03793949e7e39fd4cc1 | tar -tz
    """
    with session.store() as store, session.registry(name.partition("@")[0]) as registry:
        digest = _digest(name)
        if digest is not None and path is None:
            _print_blob(session.output, store, Descriptor("", digest, store.info(digest).size))
            return 0
        image_name, blob = _split(store, name)
        with opened(session, store, registry, image_name, platform) as image:
            if path is not None:
                with image.open(path, trust=trust) as file:
                    session.output.stream(file)
            elif blob is None:
                session.output.raw(image.manifest.raw)
            else:
                _print_member(session.output, store, registry, image, blob)
    return 0


def _digest(text: str) -> Digest | None:
    with contextlib.suppress(InvalidDigest):
        return Digest(text)
    return None


def _split(store: LocalStore, name: str) -> tuple[str, Digest | None]:
    """An image's name and the blob of it that is meant; a name that holds a digest itself is looked up first."""
    image_name, at, digest = name.rpartition("@")
    known = store.layout.names()
    if not at or name in known or _digest(digest) is None:
        return name, None
    with contextlib.suppress(NotFound):
        return find(store, name)[0], None
    return image_name, Digest(digest)


def _print_member(output: Output, store: LocalStore, registry: Registry, image: Image, digest: Digest) -> None:
    if digest == image.manifest.digest:
        output.raw(image.manifest.raw)
        return
    for desc in image.manifest.blobs:
        if desc.digest == digest:
            _print_blob(output, store if desc == image.manifest.config else image.get_remote().provider, desc)
            return
    raise NotFound(f"{image.name} has no blob {digest}")


def _print_blob(output: Output, provider: Provider, desc: Descriptor) -> None:
    """The bytes as they are read; that they were right is known at the end, which the exit status tells."""
    with provider.reader_at(desc) as reader:
        for piece in pieces(reader, desc):
            output.raw(piece)
