"""`blobtee verify`."""

from __future__ import annotations

import click

from blobtee import transfer
from blobtee.cli.errors import MISMATCH, NOT_FOUND
from blobtee.cli.origins import registry_of
from blobtee.cli.session import Session, verb
from blobtee.cli.sizes import nbytes
from blobtee.wording import counted


@click.command()
@click.option("--repair", is_flag=True, help="Set aside what is broken, and fetch it again from where it came.")
@verb(remote=True)
def command(session: Session, repair: bool) -> int:
    """Check every blob of the store against its digest, and whether images lack something.

    Lazy layers of known origin lack nothing. Each problem is a line; exit status 4 if something is broken (and was not
    repaired), 3 if something is only missing. What is said of a registry is for a store whose blobs come from one.

    \b
    Examples:
      blobtee verify
      blobtee verify --repair --json
    """
    with session.store() as store, registry_of(session, store) as registry:
        result = transfer.verify(store, repair=repair, registry=registry)
        for problem in result.problems:
            value = {
                "digest": problem.digest,
                "kind": problem.kind,
                "reason": problem.reason,
                "images": problem.images,
                "repaired": problem.repaired,
            }
            users = f" (needed by {', '.join(problem.images)})" if problem.images else ""
            state = "repaired" if problem.repaired else problem.kind
            session.output.result(value, f"{state} {problem.digest}: {problem.reason}{users}")
    left = [problem.kind for problem in result.problems if not problem.repaired]
    session.output.note(
        f"{counted(result.blobs, 'blob')} of {nbytes(result.nbytes)} read, {counted(result.lazy, 'layer')} lazy; "
        f"{left.count('broken')} broken, {left.count('missing')} missing, {len(result.problems) - len(left)} repaired"
    )
    return MISMATCH if "broken" in left else NOT_FOUND if left else 0
