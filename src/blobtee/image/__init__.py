"""An image as a tree of files: layers are opened from the top, and only what is asked for is read where that can be."""

from blobtee.image.filling import Filling, read_hints
from blobtee.image.image import Image
from blobtee.image.index import MAX_ENTRIES, Node
from blobtee.image.prefetch import Prefetched
from blobtee.image.tree import ContentFile, Tree

__all__ = ["MAX_ENTRIES", "ContentFile", "Filling", "Image", "Node", "Prefetched", "Tree", "read_hints"]
