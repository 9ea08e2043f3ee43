"""Layers as tar streams: reading their entries, and what their whiteouts mean."""

from blobtee.layers.entry import Entry, EntryType
from blobtee.layers.reader import entries
from blobtee.layers.sparse import ExpandedFile, Segment
from blobtee.layers.whiteout import Whiteout, whiteout

__all__ = ["Entry", "EntryType", "ExpandedFile", "Segment", "Whiteout", "entries", "whiteout"]
