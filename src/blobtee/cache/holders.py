"""Who holds blobs of a root for good, written down beside its database: an empty file `holders/<lease>` each.

What they hold is in the database alone. When that is lost, everything else looks as if nobody needed it; by these files
one knows that one does not know. To forget a holder that is no more, remove its file.
"""

from __future__ import annotations

import os
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

from blobtee.content.files import WRITING, make_directory, os_errors, sync_directory

_FOLDER = "holders"


def record(root: Path, lease_id: str) -> None:
    """Write down that the lease has to be in the database; durable when this returns."""
    path = root / _FOLDER / quote(lease_id, safe="")
    with os_errors(f"write {path}"):
        if not path.exists():
            make_directory(path.parent)
            os.close(os.open(path, WRITING, 0o644))
            sync_directory(path.parent)


def recorded(root: Path) -> set[str]:
    """Ids of the leases that have been written down; names that are none of ours are left out."""
    with os_errors(f"list {root / _FOLDER}"), suppress(FileNotFoundError, NotADirectoryError):
        names = [name for name in os.listdir(root / _FOLDER) if name.isascii()]
        return {unquote(name) for name in names if quote(unquote(name), safe="") == name}
    return set()


def lost(root: Path, known: set[str], there: Container[str]) -> list[str]:
    """What is to be told, a sentence each, of those of `known` that are not `there`, in the database. Ask for `known`
    first: a holder comes into the database before it is written down."""
    return [
        f"the database has lost what {lease_id} holds: start `blobtee serve` with that tenant, or if it is no more, "
        f"remove {root / _FOLDER / quote(lease_id, safe='')}"
        for lease_id in sorted(known)
        if lease_id not in there
    ]
