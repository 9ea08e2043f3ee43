"""The tee: blobs of which some is here and the rest elsewhere (`spec/tee.md`).

What is read of a remote blob is kept, in chunks of 64 KiB, over restarts and power cuts; what is here is not asked for
again, by nobody in any process; and when all of it is here and its digest is right, the file becomes a blob of the
store as it is. Knows a `Source`, and nothing of registries.
"""

from blobtee.tee.source import Source, SourceProvider, Stream, source_of
from blobtee.tee.tee import Tee, tee_of

__all__ = ["Source", "SourceProvider", "Stream", "Tee", "source_of", "tee_of"]
