"""Layers as tar streams: writing what directories hold, reading entries, and what their whiteouts mean."""

from blobtee.layers.apply import Applied, apply
from blobtee.layers.entry import Entry, EntryType
from blobtee.layers.overlay import write_overlay
from blobtee.layers.reader import entries
from blobtee.layers.sparse import ExpandedFile, Segment
from blobtee.layers.walking import write_changes
from blobtee.layers.whiteout import Whiteout, whiteout
from blobtee.layers.writer import TarWriter

__all__ = [
    "Applied",
    "Entry",
    "EntryType",
    "ExpandedFile",
    "Segment",
    "TarWriter",
    "Whiteout",
    "apply",
    "entries",
    "whiteout",
    "write_changes",
    "write_overlay",
]
