"""`blobtee gc`."""

from __future__ import annotations

import math

import click

from blobtee.cache import GRACE_SECONDS, CacheManager, Collected, Share
from blobtee.cli.errors import FAILED
from blobtee.cli.progress import nbytes
from blobtee.cli.session import Session, verb


@click.command()
@click.option("--dry-run", is_flag=True, help="Remove nothing, tell what would be.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0, max=1e9),
    default=GRACE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="What is younger stays: a program may be about to use it.",
)
@verb()
def command(session: Session, dry_run: bool, grace: float) -> int:
    """Remove what no image and no lease needs any more.

    What a name stands for stays, with all that its documents and the labels of its blobs lead to; so does what is under
    a lease, in use, or young. Pulls and other work may go on meanwhile. Partial blobs go after a day, with --grace 0 at
    once; those of images stay. Prints each blob that goes, and its bytes.

    Documents of images that are damaged or missing are told: exit status 1. Nothing is removed while it is not known
    what belongs to one of them.

    \b
    Examples:
      blobtee gc --dry-run
      blobtee rm python:3.11 && blobtee gc --grace 0
      blobtee gc --json | jq .freed
    """
    if math.isnan(grace):
        raise click.UsageError("--grace is a number of seconds")
    with session.store() as store:
        result = CacheManager(store).collect(dry_run=dry_run, grace=grace)
    if session.output.as_json:
        session.output.result(_value(result, dry_run), "")
    else:
        for digest, size in result.blobs.items():
            session.output.result({}, f"{digest}  {size:>12}")
    for problem in result.problems:
        session.output.note(f"warning: {problem}")
    would = "would be " if dry_run else ""
    session.output.note(
        f"{len(result.blobs)} blobs, {len(result.ingests) + len(result.partials)} partial blobs, "
        f"{len(result.records)} refs and {len(result.leases)} leases {would}removed, "
        f"{nbytes(result.nbytes)} {would}freed"
    )
    session.output.note(
        f"kept: {_told(result.images)} of images, {_told(result.held)} of leases, {_told(result.cache)} of the cache"
    )
    return FAILED if result.problems else 0


def _told(share: Share) -> str:
    return f"{share.blobs} blobs ({nbytes(share.nbytes)})"


def _value(result: Collected, dry_run: bool) -> dict[str, object]:
    kept = {"images": result.images, "leases": result.held, "cache": result.cache}
    return {
        "dryRun": dry_run,
        "freed": result.nbytes,
        "blobs": [{"digest": digest, "size": size} for digest, size in result.blobs.items()],
        "ingests": [{"ref": ref, "size": size} for ref, size in result.ingests.items()],
        "partials": [{"digest": digest, "size": size} for digest, size in result.partials.items()],
        "refs": result.records,
        "leases": result.leases,
        "kept": {name: {"blobs": share.blobs, "size": share.nbytes} for name, share in kept.items()},
        "problems": result.problems,
    }
