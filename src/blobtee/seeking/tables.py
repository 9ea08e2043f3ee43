"""Layers that bring their own table of contents: which kind of table, and what it tells."""

from __future__ import annotations

from blobtee.content import ReaderAt
from blobtee.errors import CorruptData, DigestMismatch, InvalidArgument, TooLarge, Unimplemented
from blobtee.oci import Compressed, Descriptor, layer_compression
from blobtee.oci.annotations import TOC_DIGEST
from blobtee.seeking import chunked, estargz, spanindex
from blobtee.seeking.api import Contents

UNUSABLE = (CorruptData, DigestMismatch, InvalidArgument, TooLarge, Unimplemented)
"""What is wrong with a table, and not with who sends it: the layer may still be read whole."""


def is_told(desc: Descriptor) -> bool:
    """Whether the annotations of `desc` have the digest of a table of contents that we can read."""
    form = layer_compression(desc.media_type)
    if form is Compressed.GZIP:
        return TOC_DIGEST in desc.annotations or spanindex.told(desc)
    return form is Compressed.ZSTD and (chunked.told(desc) or spanindex.told(desc))


def contents(desc: Descriptor, reader: ReaderAt) -> Contents:
    """What the layer's own table tells, proven by the annotations of `desc`, which have to come from the manifest that
    was asked for. `reader` may be raw; one or two reads, near its end.

    One of `UNUSABLE` when there is no such table, or it makes no sense; `UnsupportedMediaType` is one of them.
    """
    form = layer_compression(desc.media_type)
    if form is Compressed.NONE or not is_told(desc):
        raise Unimplemented(f"layer {desc.digest} has no table of contents that its manifest knows")
    if form is Compressed.ZSTD and chunked.told(desc):
        return chunked.contents(desc, reader)
    if form is Compressed.GZIP and TOC_DIGEST in desc.annotations:
        return estargz.contents(desc, reader)
    return spanindex.contents(desc, form, reader)
