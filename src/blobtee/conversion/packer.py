"""A tar in, a blob of any of the four types out, with the digests of what was packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from blobtee.compression import Compression, Encoder, Type, encoder
from blobtee.conversion.estargz import EstargzWriter
from blobtee.core import Sha256
from blobtee.oci import Digest
from blobtee.oci.annotations import TOC_DIGEST, UNCOMPRESSED, UNCOMPRESSED_SIZE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


@dataclass(frozen=True)
class Packed:
    """What became of a tar. Sizes are bytes.

    `content_diff_id` and `content_size` are of the tar that was put in; `diff_id` and `size` of what decompressing the
    blob gives, which is the same but for eStargz, whose table of contents is an entry more. `annotations` are the
    layer's (`spec/remote.md` section 5); the diff id is always among them.
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
            self._way = _Bytes(encoder(compression, write, threads=threads))

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
    """The types that know nothing of tars."""

    def __init__(self, to: Encoder) -> None:
        self._encoder = to
        self._hasher = Sha256()
        self.close = to.close

    def write(self, data: Buffer) -> int:
        # The encoder's threads pack what came before while this one hashes.
        self._hasher.update(data)
        return self._encoder.write(data)

    def finish(self) -> Packed:
        self._encoder.finish()
        digest, size = Digest(f"sha256:{self._hasher.hexdigest()}"), self._hasher.nbytes
        return Packed(digest, size, digest, size, {UNCOMPRESSED: digest})


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
