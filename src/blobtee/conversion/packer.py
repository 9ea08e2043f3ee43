"""A tar in, a blob of any of the four types out, with the digests of what was packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from blobtee.compression import Compression, Type, encoder
from blobtee.compression.encode import Packed as PackedPiece
from blobtee.conversion.estargz import EstargzWriter
from blobtee.conversion.lister import Lister
from blobtee.core import Sha256
from blobtee.oci import Compressed, Digest, layer_compression
from blobtee.oci.annotations import TOC_DIGEST, UNCOMPRESSED, UNCOMPRESSED_SIZE
from blobtee.seeking import spanindex

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


@dataclass(frozen=True)
class Packed:
    """What became of a tar. Sizes are bytes.

    `content_diff_id` and `content_size` are of the tar that was put in; `diff_id` and `size` of what decompressing the
    blob gives, which is the same but for eStargz, whose table of contents is an entry more. `annotations` are the
    layer's (`spec/remote.md` section 5); the diff id is always among them, and what tells of a table of contents.
    """

    diff_id: Digest
    size: int
    content_diff_id: Digest
    content_size: int
    annotations: Mapping[str, str]


class Packer:
    """Packs what is written to it as `compression` says; `write` gets the blob in order, from one thread at a time.

    What `write` is given is valid during the call only. Errors are those of `compression.encoder` and
    `conversion.estargz.EstargzWriter`, and what `write` raises; after one, only `close()` is left to do. The same tar
    gives the same blob for any number of `threads`. For one thread at a time; a context manager that closes.
    """

    def __init__(
        self, compression: Compression, write: Callable[[Buffer], object], *, threads: int | None = None
    ) -> None:
        self._way: _Way
        if compression.type is Type.ESTARGZ:
            self._way = _Estargz(EstargzWriter(write, level=compression.effective_level or 0, threads=threads))
        else:
            self._way = _Bytes(compression, write, threads)

    def write(self, data: Buffer) -> int:
        """Append all of `data`, which may be changed afterwards; its length in bytes."""
        return self._way.write(data)

    def finish(self) -> Packed:
        """Say that the tar is whole; when this returns, `write` has got all of the blob."""
        return self._way.finish()

    def close(self) -> None:
        """End the threads. Harmless after `finish()`, and when called again."""
        self._way.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Way(Protocol):
    def write(self, data: Buffer) -> int: ...
    def finish(self) -> Packed: ...
    def close(self) -> None: ...


class _Bytes:
    """The types that know nothing of tars, but for the index that is put behind: it tells where in them files are."""

    def __init__(self, compression: Compression, write: Callable[[Buffer], object], threads: int | None) -> None:
        self._form = layer_compression(compression.type.media_type)
        self._lister = Lister() if self._form is not Compressed.NONE else None
        self._encoder = encoder(
            compression, write, threads=threads, index=self._index if self._lister is not None else None
        )
        self._hasher = Sha256()
        self._told: Mapping[str, str] = {}

    def write(self, data: Buffer) -> int:
        # The encoder's threads pack what came before while this one hashes.
        self._hasher.update(data)
        if self._lister is not None:
            self._lister.write(data)
        return self._encoder.write(data)

    def finish(self) -> Packed:
        self._encoder.finish()
        digest, size = Digest(f"sha256:{self._hasher.hexdigest()}"), self._hasher.nbytes
        return Packed(digest, size, digest, size, {UNCOMPRESSED: digest, **self._told})

    def close(self) -> None:
        try:
            self._encoder.close()
        finally:
            if self._lister is not None:
                self._lister.close()

    def _index(self, pieces: Sequence[PackedPiece]) -> bytes:
        """What comes behind the pieces; nothing for a blob that is read at once anyway, and for what is no tar."""
        assert self._lister is not None
        entries = self._lister.finish()
        if entries is None or sum(piece.packed_nbytes for piece in pieces) < spanindex.MIN_BLOB:
            return b""
        made = spanindex.make(pieces, entries, self._form)
        self._told = made.annotations
        return made.data


class _Estargz:
    def __init__(self, to: EstargzWriter) -> None:
        self._writer = to
        self.write = to.write
        self.close = to.close

    def finish(self) -> Packed:
        made = self._writer.finish()
        annotations = {
            UNCOMPRESSED: str(made.diff_id),
            TOC_DIGEST: str(made.toc_digest),
            UNCOMPRESSED_SIZE: str(made.size),
        }
        return Packed(made.diff_id, made.size, made.content_digest, made.content_size, annotations)
