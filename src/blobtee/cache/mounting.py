"""A ref as a directory, and a layer as a tar: from the directories that refs were made of, and from blobs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from blobtee import layers
from blobtee.cache import chain
from blobtee.cache.handlers import Means
from blobtee.cache.piping import Write, pipe
from blobtee.cache.records import Kind
from blobtee.cache.snapshots import Form, Snapshot
from blobtee.errors import NotFound, TooLarge
from blobtee.tasks import check

if TYPE_CHECKING:
    from blobtee.cache.ref import Ref

MAX_NESTING = 16
"""Trees that have to be made at once to make one: diffs of diffs of diffs need one more each."""


@contextmanager
def mounted(ref: Ref, means: Means, *, depth: int = 0) -> Iterator[Path]:
    """See `CacheManager.mounted`."""
    whole = _tree(ref)
    if whole is not None:
        yield whole.require()
        return
    if depth > MAX_NESTING:
        raise TooLarge(f"ref {ref.id} is nested deeper than {MAX_NESTING} trees")
    with ref.manager.scratch.directory() as root:
        _fill(root, ref, means, depth)
        yield root


def write_changes(layer: Ref, write: Write, means: Means, *, epoch: int | None = None, depth: int = 0) -> None:
    """Write what the layer puts on top of what lies below it, as a tar, made anew of directories.

    `NotFound`: a directory is gone, or there never was one.
    """
    if layer.kind is Kind.DIFF:
        lower, upper = layer.parents
        with ExitStack() as stack:
            below = stack.enter_context(mounted(layer.view(lower), means, depth=depth + 1)) if lower else None
            above = stack.enter_context(mounted(layer.view(upper), means, depth=depth + 1))
            layers.write_changes(below, above, write, epoch=epoch)
        return
    snapshot = _snapshot(layer)
    if snapshot is None:
        raise NotFound(f"there is neither a blob of ref {layer.id}, nor a directory to make one of")
    path = snapshot.require()
    if snapshot.form is Form.OVERLAY:
        layers.write_overlay(path, write, epoch=epoch)
    elif not layer.parents:
        layers.write_changes(None, path, write, epoch=epoch)
    else:
        with mounted(layer.view(layer.parents[0]), means, depth=depth + 1) as below:
            layers.write_changes(below, path, write, epoch=epoch)


def _fill(root: Path, ref: Ref, means: Means, depth: int) -> None:
    """Make the tree of `ref` in the empty directory `root`."""
    ids = [record.id for record in chain.layers(ref.ancestry, ref.id)]
    done = _copy_tree(root, ref, ids)
    for layer_id in ids[done:]:
        check()
        _put(root, ref.view(layer_id), means, depth)


def _copy_tree(root: Path, ref: Ref, ids: list[str]) -> int:
    """Copy the topmost whole tree that is at hand into `root`: how many of the layers `ids` it stands for."""
    for number in range(len(ids), 0, -1):
        tree = _tree(ref.view(ids[number - 1]))
        if tree is not None and ids[:number] == [each.id for each in chain.layers(ref.ancestry, ids[number - 1])]:
            pipe(partial(layers.write_changes, None, tree.require()), partial(_apply, root))
            return number
    return 0


def _put(root: Path, layer: Ref, means: Means, depth: int) -> None:
    """Put one layer on top of what is in `root`. A directory comes before the blob that was made of it: what is
    compared with other directories must not have times that were clamped when the blob was made."""
    snapshot, blob = _snapshot(layer), layer.blob
    from_directory = snapshot is not None and snapshot.form is Form.OVERLAY and os.path.isdir(snapshot.path)
    at_hand = blob is not None and (layer.blob_only or blob in means.handlers or layer.manager.has(blob))
    if at_hand and not from_directory:
        with layer.tar(means) as tar:
            _apply(root, tar)
    else:
        pipe(lambda write: write_changes(layer, write, means, depth=depth), partial(_apply, root))


def _apply(root: Path, tar: BinaryIO) -> None:
    layers.apply(tar, root)


def _snapshot(ref: Ref) -> Snapshot | None:
    return ref.manager.snapshots.find(ref.snapshot_id) if ref.snapshot_id else None


def _tree(ref: Ref) -> Snapshot | None:
    """The directory that holds all of the ref's tree; None when there is none, and it may be made of something else."""
    if ref.kind not in (Kind.BASE, Kind.LAYER):
        return None
    snapshot = _snapshot(ref)
    if snapshot is None or snapshot.form is not Form.TREE:
        return None
    return snapshot if os.path.isdir(snapshot.path) or ref.blob is None else None
