"""`blobtee images`."""

from __future__ import annotations

import click

from blobtee.cli.copy import nearby_store
from blobtee.cli.session import Session, verb
from blobtee.wording import counted


@click.command()
@verb()
def command(session: Session) -> int:
    """List the images of the store: digest and name.

    These are the names that `blobtee rm` forgets and `blobtee gc` keeps. `blobtee inspect` tells more of one.

    \b
    Examples:
      blobtee images
      blobtee images --json | jq -r .name | grep ^docker.io/ | xargs blobtee rm
    """
    with nearby_store(session) as store:
        names = sorted(store.layout.names().items()) if store is not None else []
    for name, desc in names:
        value = {"name": name, "digest": desc.digest, "mediaType": desc.media_type}
        session.output.result(value, f"{desc.digest}  {name}")
    session.output.note(counted(len(names), "image"))
    return 0
