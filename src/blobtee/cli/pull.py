"""`blobtee pull`."""

from __future__ import annotations

import click

from blobtee import transfer
from blobtee.cli.options import compression_options, wish
from blobtee.cli.progress import nbytes
from blobtee.cli.session import AddressType, PlatformType, Session, verb
from blobtee.content import total_size
from blobtee.oci import Platform


@click.command()
@click.argument("address", metavar="REF", type=AddressType())
@click.option("--lazy", is_flag=True, help="Manifest and config only; layers come when they are read.")
@click.option(
    "--platform", type=PlatformType(), help="Image of an index, such as linux/arm64; default: this machine's."
)
@compression_options("Convert layers that are packed otherwise, as they come.")
@verb(remote=True)
def command(
    session: Session, address: str, lazy: bool, platform: Platform | None, kind: str | None, level: int | None
) -> int:
    """Bring an image into the store, whole or lazily.

    Prints its full name and digest. What an earlier, broken-off pull brought is not fetched again. With --compression
    the name stands for an image of its own, with a digest of its own; layers that are packed so already may stay lazy.

    \b
    Examples:
      blobtee pull python:3.12
      blobtee pull --lazy --platform linux/arm64 registry.example/team/app:1.0
      blobtee pull oci-archive:app.tar
    """
    compression = wish(kind, level)
    with session.store() as store, session.registry(address) as registry:
        with transfer.pull(
            address, store, lazy=lazy, platform=platform, compression=compression, registry=registry
        ) as image:
            layers = [
                {"digest": layer.digest, "size": layer.size, "mediaType": layer.media_type}
                for layer in image.manifest.layers
            ]
            value = {
                "name": image.name,
                "digest": image.descriptor.digest,
                "mediaType": image.descriptor.media_type,
                "platform": str(image.platform or ""),
                "lazy": lazy,
                "layers": layers,
            }
            session.output.result(
                value, f"{image.name}@{image.descriptor.digest}" if "@" not in image.name else image.name
            )
            state = "left where they are" if lazy else "in the store"
            total = nbytes(total_size(image.manifest.layers))
            session.output.note(f"{len(layers)} layers of {total} {state}")
    return 0
