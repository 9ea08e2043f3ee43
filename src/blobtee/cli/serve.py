"""`blobtee serve`."""

from __future__ import annotations

import grp
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blobtee import tasks
from blobtee._version import __version__
from blobtee.cli.session import Session, verb
from blobtee.cli.sizes import SizeType, nbytes
from blobtee.errors import Cancelled, FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from blobtee.plugin.server import Listen

_logger = logging.getLogger("blobtee.serve")


@click.command()
@click.option(
    "--socket",
    "sockets",
    multiple=True,
    metavar="[NAME=]PATH",
    help="Where a containerd finds its store; may be given again, with a name for each.",
)
@click.option("--mode", default="0600", show_default=True, metavar="OCTAL", help="Rights of the sockets.")
@click.option("--group", default="", metavar="NAME", help="Group of the sockets; with --mode 0660 it may use them.")
@click.option("--metrics", default="", metavar="HOST:PORT", help="Serve /metrics for Prometheus there, on loopback.")
@click.option(
    "--drain",
    type=click.FloatRange(min=0, max=86400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long what is under way may take after SIGTERM.",
)
@click.option(
    "--max-streams",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="RPCs at once; more get RESOURCE_EXHAUSTED.  [default: what the limit on descriptors allows]",
)
@click.option(
    "--max-size",
    type=SizeType(),
    default=None,
    metavar="SIZE",
    help="Let layers that a registry has be lazy again when the store takes more: 200GB, 500GiB.",
)
@click.option("--log-format", type=click.Choice(("text", "json")), default="text", show_default=True)
@verb(hosts=True)
def command(
    session: Session,
    sockets: Sequence[str],
    mode: str,
    group: str,
    metrics: str,
    drain: float,
    max_streams: int | None,
    max_size: int | None,
    log_format: str,
) -> int:
    """Be the content store of one or several containerds.

    Each socket is a tenant: it sees and collects what it brought or asked for, and nothing else. Blobs are kept once,
    for as long as any tenant, image or lease of the store needs them. SIGTERM finishes what is under way; what a
    cancelled write brought is resumed by the next one. Under systemd it says when it is ready, and takes its sockets
    from a .socket unit: those that --socket names by their path, others for the tenant that FileDescriptorName= says.

    With --max-size, blobs that it knows where to have again (`pull --lazy --socket`) make room for what comes, the
    longest unused first. Clients find them present all the same, and what they read of them comes once more. Registries
    are asked first whether they still have them.

    \b
    Examples:
      blobtee serve --socket /run/blobtee/blobtee.sock
      blobtee serve --socket /run/blobtee/blobtee.sock --max-size 200GB
      blobtee serve --socket k8s=/run/blobtee/k8s.sock --socket docker=/run/blobtee/docker.sock
    """
    try:
        from blobtee.plugin import logs, systemd
        from blobtee.plugin.lazy import SETTINGS
        from blobtee.plugin.metrics import MetricsServer
        from blobtee.plugin.server import Server
    except ImportError as error:
        raise FailedPrecondition("serving needs more packages: pip install 'blobtee[containerd]'") from error
    listens = _listens(sockets, mode, group)
    where = _address(metrics)
    logs.configure(log_format, quiet=session.output.quiet)
    with ExitStack() as stack:
        store = stack.enter_context(session.store())
        registry = stack.enter_context(session.registry(settings=SETTINGS))
        try:
            server = Server(store, listens, registry=registry, max_streams=max_streams, max_size=max_size)
            if where is not None:
                stack.callback(MetricsServer(server.metrics, *where).close)
            server.start()
        except InvalidArgument as error:
            raise click.UsageError(str(error)) from error
        try:
            for listen in listens:
                _logger.info("tenant %s on %s", listen.tenant, listen.path or "a socket of systemd")
            if max_size is not None:
                _logger.info("above %s, layers that a registry has are lazy again", nbytes(max_size))
            _logger.info("blobtee %s serves %s, up to %d RPCs at once", __version__, store.root, server.max_streams)
            systemd.notify(READY="1", STATUS=f"serving {store.root}")
            _wait(systemd.watchdog_seconds())
        finally:
            systemd.notify(STOPPING="1")
            _logger.info("stopping: up to %g s for what is under way", drain)
            server.stop(drain)
            _logger.info("stopped")
    return 0


def _wait(watchdog: float | None) -> None:
    """Until somebody ends the command."""
    from blobtee.plugin import systemd

    try:
        while True:
            if watchdog is not None:
                systemd.notify(WATCHDOG="1")
            tasks.sleep(watchdog or 3600)
    except Cancelled:
        return


def _listens(sockets: Sequence[str], mode: str, group: str) -> list[Listen]:
    from blobtee.plugin import systemd
    from blobtee.plugin.server import DEFAULT_TENANT, Listen

    try:
        bits = int(mode, 8)
        if not 0 <= bits <= 0o777:
            raise ValueError
    except ValueError:
        raise click.UsageError(f"--mode is rights in octal, such as 0660, not {mode!r:.40}") from None
    try:
        number = grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        raise click.UsageError(f"--group: there is no group {group!r:.80}") from None
    listens = []
    for given in sockets:
        # A path may hold "=": what comes before it is a name only when it could not be a path's beginning.
        name, equals, path = given.partition("=")
        if not equals or "/" in name:
            name, path = DEFAULT_TENANT, given
        if not path:
            raise click.UsageError(f"--socket {given!r:.80} says no path")
        if path.startswith("unix:"):
            raise click.UsageError("--socket is a path, without unix://")
        listens.append(Listen(name, Path(path), mode=bits, group=number))
    for name, inherited in systemd.inherited():
        place = inherited.getsockname()
        held = [at for at, each in enumerate(listens) if each.path is not None and str(each.path.absolute()) == place]
        if held:
            listens[held[0]] = Listen(listens[held[0]].tenant, inherited=inherited)
            continue
        # systemd calls what has no name of its own after the unit.
        tenant = DEFAULT_TENANT if name in ("unknown", "connection") or name.endswith(".socket") else name
        listens.append(Listen(tenant, inherited=inherited))
    if not listens:
        raise click.UsageError(
            "--socket is missing: where containerd finds its store, /run/blobtee/blobtee.sock for one"
        )
    return listens


def _address(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"--metrics is HOST:PORT, such as 127.0.0.1:9477, not {text!r:.80}")
    return host.strip("[]"), int(port)
