"""The compression types of layers: naming, detecting, decoding, encoding."""

from blobtee.compression.decode import decompress
from blobtee.compression.detect import detect
from blobtee.compression.encode import Encoder, deflate_level, encoder
from blobtee.compression.estargz import is_estargz
from blobtee.compression.types import Compression, Type, from_media_type
from blobtee.compression.unzstd import MAX_WINDOW

__all__ = [
    "MAX_WINDOW",
    "Compression",
    "Encoder",
    "Type",
    "decompress",
    "deflate_level",
    "detect",
    "encoder",
    "from_media_type",
    "is_estargz",
]
