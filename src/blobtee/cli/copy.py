"""`blobtee copy`."""

from __future__ import annotations

from collections import Counter

import click

from blobtee import transfer
from blobtee.cli.progress import nbytes
from blobtee.cli.session import AddressType, PlatformType, Session, verb
from blobtee.oci import Platform
from blobtee.transfer import Report


@click.command()
@click.argument("source", metavar="SRC", type=AddressType())
@click.argument("destination", metavar="DEST", type=AddressType())
@click.option("--platform", type=PlatformType(), help="Copy this one image of an index; default: all of them.")
@verb(remote=True)
def command(session: Session, source: str, destination: str, platform: Platform | None) -> int:
    """Copy an image from one address to another.

    Nothing is kept in the store, but what it has is not fetched. Within one registry layers are mounted: no byte of
    them moves.

    \b
    Examples:
      blobtee copy python:3.12 registry.example/mirror/python:3.12
      blobtee copy oci:./build:latest registry.example/team/app:1.0
      blobtee copy --platform linux/arm64 alpine:3 docker-archive:alpine.tar
    """
    with session.registry(source, destination) as registry:
        if (session.root / "blobs").is_dir():
            with session.store() as store:
                report = transfer.copy(source, destination, platform=platform, store=store, registry=registry)
        else:
            report = transfer.copy(source, destination, platform=platform, registry=registry)
    return told(session, report)


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
    session.output.result(value, report.name if "@" in report.name else f"{report.name}@{report.descriptor.digest}")
    counted = Counter(blob.how for blob in report.blobs)
    done = ", ".join(f"{number} {_WORDS.get(how, how)}" for how, number in sorted(counted.items()))
    session.output.note(f"blobs: {done or 'none'}; {nbytes(report.nbytes)} moved")
    return 0


_WORDS = {"exists": "there already"}
