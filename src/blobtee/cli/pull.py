"""`blobtee pull`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from blobtee import transfer
from blobtee.cli.options import compression_options, wish
from blobtee.cli.progress import nbytes
from blobtee.cli.session import AddressType, PlatformType, Session, verb
from blobtee.content import total_size
from blobtee.errors import FailedPrecondition
from blobtee.oci import Descriptor, Platform


@click.command()
@click.argument("address", metavar="REF", type=AddressType())
@click.option("--lazy", is_flag=True, help="Manifest and config only; layers come when they are read.")
@click.option(
    "--platform", type=PlatformType(), help="Image of an index, such as linux/arm64; default: this machine's."
)
@compression_options("Convert layers that are packed otherwise, as they come.")
@click.option(
    "--socket", type=click.Path(), metavar="PATH", help="With --lazy: for the containerds of the `blobtee serve` there."
)
@verb(remote=True)
def command(
    session: Session,
    address: str,
    lazy: bool,
    platform: Platform | None,
    kind: str | None,
    level: int | None,
    socket: str | None,
) -> int:
    """Bring an image into the store, whole or lazily.

    Prints its full name and digest. What an earlier, broken-off pull brought is not fetched again. With --compression
    the name stands for an image of its own, with a digest of its own; layers that are packed so already may stay lazy.

    With --lazy and --socket the server of that socket brings manifest and config into its own store, signed in as its
    own files say; its containerds then find all blobs of the image present, and layers come when they are read.

    \b
    Examples:
      blobtee pull python:3.12
      blobtee pull --lazy --platform linux/arm64 registry.example/team/app:1.0
      blobtee pull oci-archive:app.tar
      blobtee pull --lazy --socket /run/blobtee/blobtee.sock python:3.12
    """
    compression = wish(kind, level)
    if socket is not None:
        if not lazy or compression is not None or session.names_a_registry:
            raise click.UsageError("--socket goes with --lazy and --platform: the server has settings of its own")
        _ask_server(session, socket, address, platform)
        return 0
    with session.store() as store, session.registry(address) as registry:
        with transfer.pull(
            address, store, lazy=lazy, platform=platform, compression=compression, registry=registry
        ) as image:
            descriptor = image.descriptor
            _show(
                session,
                image.name,
                descriptor.digest,
                descriptor.media_type,
                image.platform,
                lazy,
                image.manifest.layers,
            )
    return 0


def _ask_server(session: Session, socket: str, address: str, platform: Platform | None) -> None:
    try:
        from blobtee.plugin.client import pull_lazily
    except ImportError as error:
        raise FailedPrecondition("--socket needs more packages: pip install 'blobtee[containerd]'") from error
    pulled = pull_lazily(socket, address, str(platform or Platform.current()))
    _show(session, pulled.name, pulled.digest, pulled.media_type, pulled.platform, True, pulled.layers)


def _show(
    session: Session,
    name: str,
    digest: str,
    media_type: str,
    platform: Platform | str | None,
    lazy: bool,
    layers: Sequence[Descriptor],
) -> None:
    value = {
        "name": name,
        "digest": digest,
        "mediaType": media_type,
        "platform": str(platform or ""),
        "lazy": lazy,
        "layers": [{"digest": layer.digest, "size": layer.size, "mediaType": layer.media_type} for layer in layers],
    }
    session.output.result(value, f"{name}@{digest}" if "@" not in name else name)
    state = "left where they are" if lazy else "in the store"
    session.output.note(f"{len(layers)} layers of {nbytes(total_size(layers))} {state}")
