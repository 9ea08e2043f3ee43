"""`blobtee convert`."""

from __future__ import annotations

import click

from blobtee import transfer
from blobtee.cli.copy import nearby_store, told
from blobtee.cli.options import compression_options, epoch_option, packing
from blobtee.cli.session import AddressType, PlatformType, Session, verb
from blobtee.oci import Platform


@click.command()
@click.argument("source", metavar="SRC", type=AddressType())
@click.argument("destination", metavar="DEST", type=AddressType())
@compression_options("How the layers are to be packed.", required=True)
@click.option("--force", is_flag=True, help="Pack layers anew that are of this type already, for another level.")
@epoch_option("Let no file in a layer, and no time in a config, be younger. Every layer is read for that.")
@click.option("--platform", type=PlatformType(), help="Convert this one image of an index; default: all of them.")
@verb(remote=True)
def command(
    session: Session,
    source: str,
    destination: str,
    kind: str,
    level: int | None,
    force: bool,
    epoch: int | None,
    platform: Platform | None,
) -> int:
    """Bring an image from SRC to DEST with its layers packed otherwise.

    Layers that are packed so already are mounted or copied as they are, all others read once and in one pass. What
    changes becomes an OCI image; diff ids stay, but for estargz and --epoch. Attestations of an image that changes are
    left out, because they vouch for the old digest. The same input gives the same digest.

    Converted layers stay in the store, if there is one, until they are collected: the same command again finds them.

    \b
    Examples:
      blobtee convert python:3.12 registry.example/team/python:3.12-zstd --compression zstd
      blobtee convert --compression estargz oci:./build:latest registry.example/team/app:esgz
      blobtee convert --compression zstd --level 19 --force registry.example/team/app:1 oci:./small
    """
    compression = packing(kind, level, force=force)
    with session.registry(source, destination) as registry, nearby_store(session) as store:
        report = transfer.convert(
            source, destination, compression, platform=platform, epoch=epoch, store=store, registry=registry
        )
    return told(session, report)
