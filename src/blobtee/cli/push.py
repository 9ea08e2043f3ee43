"""`blobtee push`."""

from __future__ import annotations

import click

from blobtee import transfer
from blobtee.cli.copy import told
from blobtee.cli.options import compression_options, wish
from blobtee.cli.session import AddressType, PlatformType, Session, verb
from blobtee.oci import Platform


@click.command()
@click.argument("name", metavar="REF")
@click.argument("destination", metavar="DEST", type=AddressType())
@click.option("--platform", type=PlatformType(), help="Push this one image of an index; default: all, if all are here.")
@compression_options("Convert layers that are packed otherwise, or take variants that the store has.")
@verb(remote=True)
def command(
    session: Session, name: str, destination: str, platform: Platform | None, kind: str | None, level: int | None
) -> int:
    """Push an image of the store to a registry, a layout or an archive.

    REF is a name that the store knows, from a pull. Layers that are still lazy are mounted where DEST is on the
    registry that they are on: no byte of them moves then. With --compression the image gets documents of its own, as
    `blobtee convert` tells; the store keeps the converted layers beside the others. --username is for the registry of
    DEST.

    \b
    Examples:
      blobtee push python:3.12 registry.example/mirror/python:3.12
      blobtee push registry.example/team/app:1 docker-archive:app.tar
      blobtee push --compression zstd python:3.12 registry.example/mirror/python:3.12-zstd
    """
    compression = wish(kind, level)
    with session.store() as store, session.registry(destination, name, sign_in=destination) as registry:
        with transfer.open_image(name, store, platform=platform, registry=registry) as image:
            report = transfer.push(
                image,
                destination,
                store,
                registry=registry,
                all_platforms=platform is None,
                compression=compression,
            )
    return told(session, report)
