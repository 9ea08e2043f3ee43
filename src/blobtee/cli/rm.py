"""`blobtee rm`."""

from __future__ import annotations

import click

from blobtee.cli.session import Session, verb
from blobtee.transfer import images


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@verb()
def command(session: Session, names: tuple[str, ...]) -> int:
    """Forget names of images. Their blobs stay until `blobtee gc`.

    Prints the names that are gone, in full. When one of them is not known, exit status 3, and all stay.

    \b
    Examples:
      blobtee rm python:3.12
      blobtee rm python:3.11 python:3.10 && blobtee gc
    """
    with session.store() as store:
        found = dict(images.find(store, name) for name in names)
        for name, desc in found.items():
            store.layout.remove(name)
            session.output.result({"name": name, "digest": desc.digest}, name)
    session.output.note("`blobtee gc` frees the space of what nothing else needs")
    return 0
