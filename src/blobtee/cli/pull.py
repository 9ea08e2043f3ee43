"""`blobtee pull`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import click

from blobtee import transfer
from blobtee.cache import CacheManager
from blobtee.cli.doctor import refused
from blobtee.cli.options import BandwidthType, compression_options, wish
from blobtee.cli.output import printable
from blobtee.cli.session import AddressType, PlatformType, Session, verb
from blobtee.cli.sizes import nbytes
from blobtee.content import total_size
from blobtee.errors import FailedPrecondition, InvalidReference, from_os_error
from blobtee.image import Image, read_hints
from blobtee.oci import Descriptor, Platform, Reference
from blobtee.plugin.sockets import refusal
from blobtee.wording import counted

_NAMED = 5


def _full(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A name in full, as it is asked for later."""
    if value is None:
        return None
    try:
        reference = Reference.parse(value)
    except InvalidReference as error:
        raise click.BadParameter(str(error), ctx, param) from None
    if reference.digest is not None:
        raise click.BadParameter(f"{value!r}: a name of its own has a tag, and no digest", ctx, param)
    return str(reference)


@click.command()
@click.argument("address", metavar="REF", type=AddressType())
@click.option("--lazy", is_flag=True, help="Manifest and config only; layers come when they are read.")
@click.option("--fill", is_flag=True, help="As --lazy, and then bring the layers behind whoever reads them.")
@click.option(
    "--hints",
    type=click.File("rb"),
    metavar="FILE",
    help="With --lazy or --fill: paths in the image, one a line, to bring first; - is standard input.",
)
@click.option(
    "--bandwidth",
    type=BandwidthType(),
    metavar="RATE",
    help="Take no more of the line for layers, such as 5MB/s or 40Mbit/s, but for what somebody waits for.",
)
@click.option(
    "--name",
    "called",
    metavar="NAME",
    callback=_full,
    help="What the store is to call it; default: REF in full, or what the layout or archive calls it.",
)
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
    fill: bool,
    hints: BinaryIO | None,
    bandwidth: float | None,
    called: str | None,
    platform: Platform | None,
    kind: str | None,
    level: int | None,
    socket: str | None,
) -> int:
    """Bring an image into the store, whole or lazily.

    Prints its full name and digest. What an earlier, broken-off pull brought is not fetched again. With --compression
    the name stands for an image of its own, with a digest of its own; layers that are packed so already may stay lazy.

    With --fill the image can be used as soon as its name is printed: its layers come while this runs, and who reads
    the same store goes first. Interrupted, it leaves what came; the same command again goes on there. Hints that the
    image has not are told and passed over. With --json a second line tells what came.

    With --lazy and --socket the server of that socket brings manifest and config into its own store, signed in as its
    own files say; its containerds then find all blobs of the image present, and layers come when they are read.

    \b
    Examples:
      blobtee pull python:3.12
      blobtee pull --lazy --platform linux/arm64 registry.example/team/app:1.0
      blobtee pull --name team/app:dev oci-archive:app.tar
      blobtee pull --fill --bandwidth 5MB/s --hints startup.txt python:3.12
      blobtee pull --lazy --socket /run/blobtee/blobtee.sock python:3.12
    """
    compression = wish(kind, level)
    if socket is not None:
        alone = compression is None and bandwidth is None and hints is None and called is None and not fill
        if not (lazy and alone) or session.names_a_registry:
            raise click.UsageError("--socket goes with --lazy and --platform: the server has settings of its own")
        _ask_server(session, socket, address, platform)
        return 0
    lazy = lazy or fill
    if hints is not None and not lazy:
        raise click.UsageError("--hints goes with --lazy or --fill: otherwise all layers come at once")
    first = _read(hints) if hints is not None else []
    with session.store() as store, session.registry(address) as registry:
        with transfer.pull(
            address,
            store,
            lazy=lazy,
            platform=platform,
            compression=compression,
            bandwidth=bandwidth,
            registry=registry,
            name=called,
        ) as image:
            descriptor, layers = image.descriptor, image.manifest.layers
            cache = CacheManager(store)
            left = [layer for layer in layers if not cache.has(layer.digest)]
            _show(session, image.name, descriptor.digest, descriptor.media_type, image.platform, lazy, layers, left)
            if fill or first:
                _fill(session, image, first, fill, bandwidth)
    return 0


def _read(hints: BinaryIO) -> list[str]:
    try:
        return read_hints(hints)
    except OSError as error:
        raise from_os_error(error, "read the hints") from error


def _fill(session: Session, image: Image, first: list[str], rest: bool, bandwidth: float | None) -> None:
    session.output.flush()  # the image may be used from now on
    filling = image.fill(first, rest=rest, bandwidth=bandwidth)
    filling.wait()
    missing = filling.missing
    if missing:
        named = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        session.output.note(f"warning: hints that are not in the image: {printable(named)}")
    if session.output.as_json:
        value = {"filled": rest, "hints": len(first), "prefetched": filling.prefetched, "missing": list(missing)}
        session.output.result(value, "")
    if first:
        session.output.note(
            f"{counted(len(first) - len(missing), 'hint')} brought, {nbytes(filling.prefetched)} of layers"
        )
    if rest:
        session.output.note(f"{counted(len(image.manifest.layers), 'layer')} in the store now")


def _ask_server(session: Session, socket: str, address: str, platform: Platform | None) -> None:
    try:
        from blobtee.plugin.client import pull_lazily
    except ImportError as error:
        raise FailedPrecondition("--socket needs more packages: pip install 'blobtee[containerd]'") from error
    number = refusal(Path(socket))
    if number:
        raise FailedPrecondition(f"nobody answers at {socket}: {refused(Path(socket), number)}")
    pulled = pull_lazily(socket, address, str(platform or Platform.current()))
    _show(session, pulled.name, pulled.digest, pulled.media_type, pulled.platform, True, pulled.layers, pulled.layers)


def _show(
    session: Session,
    name: str,
    digest: str,
    media_type: str,
    platform: Platform | str | None,
    lazy: bool,
    layers: Sequence[Descriptor],
    left: Sequence[Descriptor],
) -> None:
    """`left` are the layers that are not here yet."""
    value = {
        "name": name,
        "digest": digest,
        "mediaType": media_type,
        "platform": str(platform or ""),
        "lazy": lazy,
        "layers": [{"digest": layer.digest, "size": layer.size, "mediaType": layer.media_type} for layer in layers],
    }
    session.output.result(value, f"{name}@{digest}" if "@" not in name else name)
    state = "left at the registry" if left else "in the store"
    session.output.note(f"{counted(len(left or layers), 'layer')} of {nbytes(total_size(left or layers))} {state}")
