"""`blobtee gc`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import click

from blobtee.cache import GRACE_SECONDS, CacheManager, Collected, Share
from blobtee.cli.errors import FAILED
from blobtee.cli.origins import registry_of
from blobtee.cli.session import Session, verb
from blobtee.cli.sizes import SizeType, nbytes
from blobtee.content import LocalStore
from blobtee.oci import Digest
from blobtee.plugin.known import KnownBlobs
from blobtee.transfer.evictable import Held
from blobtee.transfer.evicting import Gone, Shrunk, shrink
from blobtee.transfer.obtaining import HASTY, Obtaining
from blobtee.wording import counted


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
@click.option(
    "--shrink",
    "size",
    type=SizeType(),
    default=None,
    metavar="SIZE",
    help="Then let layers that a registry has be lazy again, until the store takes no more: 10GB, 512MiB, 0.",
)
@click.option(
    "--unchecked",
    is_flag=True,
    help="With --shrink: do not ask registries whether they still have a layer; believe what is recorded.",
)
@verb(remote=True)
def command(session: Session, dry_run: bool, grace: float, size: int | None, unchecked: bool) -> int:
    """Remove what no image and no lease needs any more.

    What a name stands for stays, with all that its documents and the labels of its blobs lead to; so does what is under
    a lease, in use, or young. Pulls and other work may go on meanwhile. Partial blobs go after a day, with --grace 0 at
    once; those of images stay. Prints each blob that goes, and its bytes.

    With --shrink, layers that came from a registry and partial blobs go too, the longest unused first, until the store
    (but for its metadata) takes at most SIZE. Their images stay complete: what is read of such a layer
    comes again, and only that, checked by digests that are kept. Their registries are asked first: what they do not
    have any more stays, and so does what they do not answer for. What was built, imported or sent by a client is only
    here and stays. When that is too much, exit status 1 (but of 0, which is all that may go), and what holds the rest
    is told. --username, --plain-http and
    --no-tls-verify are for a store whose blobs come from one registry; for several there are `docker login` and
    hosts.toml files.

    Documents of images that are damaged or missing are told: exit status 1. Nothing is removed while it is not known
    what belongs to one of them.

    \b
    Examples:
      blobtee gc --dry-run
      blobtee rm python:3.11 && blobtee gc --grace 0
      blobtee gc --shrink 20GB
      blobtee gc --json | jq .freed
    """
    if math.isnan(grace):
        raise click.UsageError("--grace is a number of seconds")
    if unchecked and size is None:
        raise click.UsageError("--unchecked belongs to --shrink")
    if session.names_a_registry and (unchecked or size is None):
        raise click.UsageError("registries are asked with --shrink only, and not with --unchecked")
    with session.store() as store:
        result = CacheManager(store).collect(dry_run=dry_run, grace=grace)
        shrunk = _shrink(session, store, size, result, dry_run, unchecked) if size is not None else None
    if session.output.as_json:
        session.output.result(_value(result, shrunk, dry_run), "")
    else:
        for digest, size_ in result.blobs.items():
            session.output.result({}, f"{digest}  {size_:>12}")
        for digest, size_ in (shrunk.blobs if shrunk is not None else {}).items():
            session.output.result({}, f"{digest}  {size_:>12}  lazy")
    for problem in (*result.problems, *(shrunk.problems if shrunk is not None else ())):
        session.output.note(f"warning: {problem}")
    for reason in shrunk.kept if shrunk is not None else ():
        session.output.note(reason)
    would = "would be " if dry_run else ""
    session.output.note(
        f"{counted(len(result.blobs), 'blob')}, {counted(len(result.ingests) + len(result.partials), 'partial blob')}, "
        f"{counted(len(result.records), 'ref')} and {counted(len(result.leases), 'lease')} {would}removed, "
        f"{nbytes(result.nbytes)} {would}freed"
    )
    if shrunk is None:
        kept = f"{_told(result.images)} of images, {_told(result.held)} of leases, {_told(result.cache)} of the cache"
        if result.cache.blobs and grace:
            kept += f" (in use, or not {grace:g} seconds old: see --grace)"
        session.output.note(f"kept: {kept}")
        return FAILED if result.problems else 0
    takes = "would take" if dry_run else "takes"
    session.output.note(
        f"{counted(len(shrunk.blobs), 'blob')} {would}lazy again, "
        f"{counted(len(shrunk.partials), 'partial blob')} {would}removed, "
        f"{nbytes(shrunk.nbytes)} {would}freed; the store {takes} {nbytes(shrunk.after)}"
    )
    if not shrunk.reached:
        held = ", ".join(f"{reason.text}: {_told(share)}" for reason, share in shrunk.held.items())
        session.output.note(f"that is more than {nbytes(shrunk.target)}, and no more may go. {held}")
    # 0 asks for whatever may go: only what a registry refuses is less than that.
    missed = not shrunk.reached and (size != 0 or Held.UNOBTAINABLE in shrunk.held)
    return FAILED if result.problems or shrunk.problems or missed else 0


def _shrink(
    session: Session, store: LocalStore, size: int, collected: Collected, dry_run: bool, unchecked: bool
) -> Shrunk:
    gone = Gone(collected.blobs, collected.partials, collected.ingests) if dry_run else None
    clients = KnownBlobs(store)
    if unchecked:
        return shrink(store, size, clients=clients, dry_run=dry_run, gone=gone)
    with registry_of(session, store, settings=HASTY) as registry:
        return shrink(store, size, clients=clients, obtaining=Obtaining(registry), dry_run=dry_run, gone=gone)


def _told(share: Share) -> str:
    return f"{counted(share.blobs, 'blob')} ({nbytes(share.nbytes)})"


def _value(result: Collected, shrunk: Shrunk | None, dry_run: bool) -> dict[str, object]:
    kept = {"images": result.images, "leases": result.held, "cache": result.cache}
    value: dict[str, object] = {
        "dryRun": dry_run,
        "freed": result.nbytes + (shrunk.nbytes if shrunk is not None else 0),
        "blobs": _sizes(result.blobs),
        "ingests": [{"ref": ref, "size": size} for ref, size in result.ingests.items()],
        "partials": _sizes(result.partials),
        "refs": result.records,
        "leases": result.leases,
        "kept": {name: _share(share) for name, share in kept.items()},
        "problems": (*result.problems, *(shrunk.problems if shrunk is not None else ())),
    }
    if shrunk is not None:
        value["shrunk"] = {
            "target": shrunk.target,
            "reached": shrunk.reached,
            "before": shrunk.before,
            "after": shrunk.after,
            "blobs": _sizes(shrunk.blobs),
            "partials": _sizes(shrunk.partials),
            "held": {reason.value: _share(share) for reason, share in shrunk.held.items()},
        }
    return value


def _sizes(blobs: Mapping[Digest, int]) -> list[dict[str, object]]:
    return [{"digest": digest, "size": size} for digest, size in blobs.items()]


def _share(share: Share) -> dict[str, int]:
    return {"blobs": share.blobs, "size": share.nbytes}
