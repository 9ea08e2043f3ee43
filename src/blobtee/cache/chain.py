"""Records that hang together: loading a ref's ancestors, and the order of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from blobtee.cache.records import Kind, Record, Records
from blobtee.errors import DataLoss, NotFound, TooLarge
from blobtee.oci import Digest, chain_id

MAX_LAYERS = 10_000
"""Layers of one ref. Merges of merges double, so the bound is also one on time."""

_MAX_STEPS = 10 * MAX_LAYERS


def load(records: Records, ref_id: str) -> dict[str, Record]:
    """The record and all its ancestors by id, each after its own ancestors.

    `NotFound`: no such record. `DataLoss`: a parent is gone, or records are each other's ancestors.
    """
    # What is loaded but not done is exactly the way from `ref_id` to the record in hand.
    loaded: dict[str, Record] = {}
    done: dict[str, Record] = {}
    stack = [ref_id]
    while stack:
        current = stack[-1]
        if current in done:
            stack.pop()
            continue
        record = loaded.get(current)
        if record is None:
            record = loaded[current] = _fetch(records, current, is_parent=current != ref_id)
            for parent in record.parents:
                if parent in loaded and parent not in done:
                    raise DataLoss(f"ref {parent} is its own ancestor, through {current}")
            waiting = [parent for parent in reversed(record.parents) if parent and parent not in done]
            stack.extend(waiting)
            continue
        done[current] = record
        stack.pop()
    return done


def _fetch(records: Records, ref_id: str, *, is_parent: bool) -> Record:
    try:
        return records.get(ref_id)
    except NotFound:
        if not is_parent:
            raise
        raise DataLoss(f"the record of ref {ref_id}, which others are built on, is gone") from None


def layers(ancestry: Mapping[str, Record], ref_id: str) -> list[Record]:
    """The records whose blobs are the ref's layers, base to top (`spec/remote.md` section 2). `TooLarge`.

    A merge is its parents' chains one after another. A diff is its upper's top layer when lower is what that lies on,
    else a blob of its own.
    """
    chain: list[Record] = []
    stack = [ref_id]
    steps = 0
    while stack:
        record = ancestry[stack.pop()]
        steps += 1
        if len(chain) >= MAX_LAYERS or steps > _MAX_STEPS:
            raise TooLarge(f"ref {ref_id} has more than {MAX_LAYERS} layers")
        if record.kind is Kind.MERGE:
            stack.extend(record.parents)  # the last one, which is popped first, is on top
        elif record.kind is Kind.DIFF:
            chain.append(_of_diff(ancestry, record))
        else:
            chain.append(record)
            stack.extend(record.parents)
    chain.reverse()
    return chain


def missing_ids(ancestry: Mapping[str, Record]) -> dict[str, tuple[Digest, Digest]]:
    """Chain id and blob chain id of the records that lack them though all of their layers have blobs.

    They are OCI's ChainID over the layers' diff ids, and over the ChainIDs of blob and diff id of each
    (`spec/remote.md` section 2). `ancestry` has ancestors first.
    """
    known: dict[str, tuple[Digest, Digest]] = {}
    missing: dict[str, tuple[Digest, Digest]] = {}
    for record in ancestry.values():
        if record.chain_id is not None and record.blob_chain_id is not None:
            known[record.id] = record.chain_id, record.blob_chain_id
            continue
        # What lies below a layer, or comes first in a merge, has its ids already.
        below = record.parents[:1] if record.kind in (Kind.LAYER, Kind.MERGE) else ()
        ids = known.get(below[0]) if below else None
        if below and ids is None:
            continue
        for layer in _on_top(ancestry, record):
            if layer.blob is None or layer.diff_id is None:
                ids = None
                break
            pair = chain_id(layer.blob, layer.diff_id)
            ids = (
                (chain_id(ids[0], layer.diff_id), chain_id(ids[1], pair)) if ids is not None else (layer.diff_id, pair)
            )
        if ids is not None:
            known[record.id] = missing[record.id] = ids
    return missing


def _on_top(ancestry: Mapping[str, Record], record: Record) -> Iterator[Record]:
    """The layers of `record` without those of its first parent, if it has these too."""
    if record.kind is Kind.MERGE:
        for parent in record.parents[1:]:
            yield from layers(ancestry, parent)
    elif record.kind is Kind.DIFF:
        yield _of_diff(ancestry, record)
    else:
        yield record


def _of_diff(ancestry: Mapping[str, Record], record: Record) -> Record:
    lower, upper = record.parents
    candidate = ancestry[upper]
    under = candidate.parents[0] if candidate.parents else ""
    is_single_layer = candidate.kind in (Kind.BASE, Kind.LAYER) and under == lower
    return candidate if is_single_layer else record
