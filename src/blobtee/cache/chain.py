"""Records that hang together: loading a ref's ancestors, and the order of its layers."""

from __future__ import annotations

from collections.abc import Mapping

from blobtee.cache.records import Kind, Record, Records
from blobtee.errors import DataLoss, NotFound, TooLarge

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


def _of_diff(ancestry: Mapping[str, Record], record: Record) -> Record:
    lower, upper = record.parents
    candidate = ancestry[upper]
    under = candidate.parents[0] if candidate.parents else ""
    is_single_layer = candidate.kind in (Kind.BASE, Kind.LAYER) and under == lower
    return candidate if is_single_layer else record
