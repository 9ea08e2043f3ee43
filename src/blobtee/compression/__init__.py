"""The compression types of layers: naming, detecting, decoding. Encoding and conversion build on the same types."""

from blobtee.compression.decode import MAX_WINDOW, decompress
from blobtee.compression.detect import detect
from blobtee.compression.estargz import is_estargz
from blobtee.compression.types import Compression, Type, from_media_type

__all__ = ["MAX_WINDOW", "Compression", "Type", "decompress", "detect", "from_media_type", "is_estargz"]
