"""`blobtee copy`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import click

from blobtee import transfer
from blobtee.cli.options import compression_options, wish
from blobtee.cli.session import AddressType, PlatformType, Session, verb
from blobtee.cli.sizes import nbytes
from blobtee.content import LocalStore
from blobtee.content.files import os_errors
from blobtee.oci import Platform
from blobtee.transfer import Report


@click.command()
@click.argument("source", metavar="SRC", type=AddressType())
@click.argument("destination", metavar="DEST", type=AddressType())
@click.option("--platform", type=PlatformType(), help="Copy this one image of an index; default: all of them.")
@compression_options("Convert layers that are packed otherwise, as `blobtee convert` does.")
@verb(remote=True)
def command(
    session: Session,
    source: str,
    destination: str,
    platform: Platform | None,
    kind: str | None,
    level: int | None,
) -> int:
    """Copy an image from one address to another.

    No image is kept in the store, but what it has is not fetched. Within one registry layers are mounted: no byte of
    them moves.

    \b
    Examples:
      blobtee copy python:3.12 registry.example/mirror/python:3.12
      blobtee copy oci:./build:latest registry.example/team/app:1.0
      blobtee copy --platform linux/arm64 alpine:3 docker-archive:alpine.tar
      blobtee copy --compression zstd python:3.12 oci:./python
    """
    compression = wish(kind, level)
    with session.registry(source, destination) as registry, nearby_store(session) as store:
        report = transfer.copy(
            source, destination, platform=platform, compression=compression, store=store, registry=registry
        )
    return told(session, report)


@contextmanager
def nearby_store(session: Session) -> Iterator[LocalStore | None]:
    """The store, if there is one: these verbs make none."""
    with os_errors(f"look for a store in {session.root}"):
        exists = (session.root / "blobs").is_dir()
    if not exists:
        yield None
        return
    with session.store() as store:
        yield store


def told(session: Session, report: Report) -> int:
    """Print what a copy or push did."""
    blobs = [
        {"digest": blob.descriptor.digest, "size": blob.descriptor.size, "how": blob.how, "bytes": blob.nbytes}
        | ({"from": blob.source} if blob.source else {})
        for blob in report.blobs
    ]
    value = {
        "name": report.name,
        "digest": report.descriptor.digest,
        "mediaType": report.descriptor.media_type,
        "bytes": report.nbytes,
        "blobs": blobs,
    }
    if report.dropped:
        value["dropped"] = [desc.digest for desc in report.dropped]
    session.output.result(value, report.name if "@" in report.name else f"{report.name}@{report.descriptor.digest}")
    counted = Counter(blob.how for blob in report.blobs)
    done = ", ".join(f"{number} {_WORDS.get(how, how)}" for how, number in sorted(counted.items()))
    session.output.note(f"blobs: {done or 'none'}; {nbytes(report.nbytes)} moved")
    if report.dropped:
        session.output.note(
            f"left out: {len(report.dropped)} attestations or the like, which vouch for an image that is another now"
        )
    return 0


_WORDS = {"exists": "there already"}
