"""Help for testing what is built on blobtee: a registry in this process, and images made of given files."""

from blobtee.testing.bodies import Body, Bytes, File, Generated
from blobtee.testing.http import Request
from blobtee.testing.images import ImageSource, Layer, image, index, layer, tar
from blobtee.testing.registry import Answer, Counters, Entry, Fault, MemoryRegistry

__all__ = [
    "Answer",
    "Body",
    "Bytes",
    "Counters",
    "Entry",
    "Fault",
    "File",
    "Generated",
    "ImageSource",
    "Layer",
    "MemoryRegistry",
    "Request",
    "image",
    "index",
    "layer",
    "tar",
]
