"""`blobtee adopt`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from blobtee.cli.errors import FAILED
from blobtee.cli.session import Session, verb
from blobtee.cli.sizes import nbytes
from blobtee.errors import InvalidArgument
from blobtee.plugin.adopting import adopt, content_root
from blobtee.plugin.references import check_name
from blobtee.wording import counted


@click.command()
@click.argument("path", type=click.Path(path_type=Path, file_okay=False))
@click.option("--in-place", is_flag=True, help="Make the folder itself the store, instead of linking into --root.")
@click.option("--tenant", default="default", show_default=True, help="Whose the blobs are to be: a name of `serve`.")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path, dir_okay=False),
    help="containerd's meta.db.  [default: io.containerd.metadata.v1.bolt/meta.db beside PATH]",
)
@click.option("--verify/--no-verify", default=True, help="Hash every blob before it is taken (default).")
@verb()
def command(session: Session, path: Path, in_place: bool, tenant: str, metadata: Path | None, verify: bool) -> int:
    """Take over what containerd kept in its own store.

    PATH is containerd's folder (/var/lib/containerd) or the content root in it. Stop containerd first. Its blobs are
    linked into the store, which takes no room, or copied to another file system; what it wrote of them (labels, times)
    is read from its metadata, and unfinished blobs can be resumed. PATH is only read, unless --in-place. Running it
    again takes what is new.

    \b
    Examples:
      blobtee adopt /var/lib/containerd
      blobtee adopt --in-place /var/lib/containerd/io.containerd.content.v1.content
    """
    try:
        check_name(tenant)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from error
    source = content_root(path)
    if in_place:
        session.root = source
    with session.store() as store:
        done = adopt(source, store, tenant, database=metadata, verify=verify)
    for note in done.notes:
        session.output.note(f"note: {note}")
    for digest in done.damaged:
        session.output.note(f"damaged, not taken: {digest}")
    text = f"tenant {tenant} holds {counted(done.held, 'blob')} of {nbytes(done.nbytes)} in {session.root}"
    session.output.result({"root": str(session.root), "tenant": tenant, **dataclasses.asdict(done)}, text)
    session.output.note(
        f"linked {done.linked}, copied {done.copied}, unfinished {done.ingests}, left {done.garbage} that containerd "
        "does not know"
    )
    session.output.note(f"next: blobtee serve --root {session.root} --socket {tenant}=…; blobtee containerd config")
    return FAILED if done.damaged else 0
