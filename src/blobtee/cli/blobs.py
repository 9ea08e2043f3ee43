"""`blobtee blobs`."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from blobtee.cli.session import Session, verb
from blobtee.cli.sizes import nbytes
from blobtee.content.filters import parse
from blobtee.errors import InvalidArgument
from blobtee.wording import counted


@click.command()
@click.argument("filters", metavar="[FILTER]...", nargs=-1)
@verb()
def command(session: Session, filters: tuple[str, ...]) -> int:
    """List the blobs of the store: digest, bytes, and when they came.

    A FILTER is containerd's: digest==sha256:…, labels."some/key"==value; several mean any of them. With --json the
    labels are printed too.

    \b
    Examples:
      blobtee blobs
      blobtee blobs 'labels."containerd.io/distribution.source.docker.io"~=python'
    """
    try:
        parse(filters)
    except InvalidArgument as error:
        raise click.BadParameter(str(error), param_hint="FILTER") from None
    count = total = 0
    with session.store() as store:
        for info in store.walk(*filters):
            count += 1
            total += info.size
            created = datetime.fromtimestamp(info.created_at // 1_000_000_000, UTC)
            value = {
                "digest": info.digest,
                "size": info.size,
                "created": created.isoformat(),
                "labels": dict(info.labels),
            }
            session.output.result(value, f"{info.digest}  {info.size:>12}  {created:%Y-%m-%d %H:%M:%S}")
    session.output.note(f"{counted(count, 'blob')}, {nbytes(total)}")
    return 0
