"""Files inside layers: indexes of what a blob unpacks to, so that one file is read without the rest."""

from blobtee.seeking.api import Contents, Extent, Unpacked, joined, stored_nbytes
from blobtee.seeking.listing import ListWriter
from blobtee.seeking.spans import MAX_SPAN, Span, SpannedStream, SpanTable

__all__ = [
    "MAX_SPAN",
    "Contents",
    "Extent",
    "ListWriter",
    "Span",
    "SpanTable",
    "SpannedStream",
    "Unpacked",
    "joined",
    "stored_nbytes",
]
