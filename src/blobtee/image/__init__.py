"""An image as a tree of files, read by streaming its layers from the top."""

from blobtee.image.image import Image
from blobtee.image.index import MAX_ENTRIES, Node
from blobtee.image.tree import ContentFile, Tree

__all__ = ["MAX_ENTRIES", "ContentFile", "Image", "Node", "Tree"]
