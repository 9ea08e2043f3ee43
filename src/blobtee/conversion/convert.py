"""A blob of one compression into one of another, in one pass (`spec/remote.md` section 5, "Conversion")."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from blobtee import tasks
from blobtee.compression import Compression, Type, decompress, from_media_type
from blobtee.compression.estargz import is_estargz, payload_nbytes
from blobtee.content.api import Provider, ReaderAt, Store, Writer
from blobtee.content.digester import digest_of, digester
from blobtee.conversion import epoch as times
from blobtee.conversion.packer import Packed, Packer
from blobtee.core import Sha256
from blobtee.errors import AlreadyExists, BlobteeError, CorruptData, DigestMismatch, RefLocked, SizeMismatch
from blobtee.layers import entries
from blobtee.oci import Descriptor, Digest
from blobtee.oci.annotations import UNCOMPRESSED
from blobtee.tasks import check

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_PIECE = 1 << 20
_NEVER = 1 << 95
"""Seconds: no time in a tar is later."""
_LOCK_WAIT = 0.05
"""Seconds between two looks at an ingest that another thread or process writes."""


def convert(
    store: Store,
    desc: Descriptor,
    compression: Compression,
    *,
    provider: Provider | None = None,
    epoch: int | None = None,
    max_output: int | None = None,
    threads: int | None = None,
    labels: Mapping[str, str] | None = None,
    before_commit: Callable[[Descriptor], object] | None = None,
) -> Descriptor:
    """Pack the layer `desc` as `compression` says, into `store`; `provider` (the store itself, by default) has it.

    The tar inside stays as it is, so that the diff id does: but for eStargz, whose table of contents is an entry of its
    own, made for the result and cut off the source; and with `epoch` (seconds), to which later times in the tar are
    clamped. One pass, flat memory, several threads. `before_commit` is called with the result's descriptor before it
    is a blob, so that a lease may hold it from its first moment on; `labels` are the blob's.

    The result has the OCI media type, no urls, and the annotations that belong to the blob. That it is in the store
    already is fine. Another thread or process at the same work is waited for.

    `UnsupportedMediaType`, before anything is read. `NotFound`. `DigestMismatch`, `SizeMismatch`: the source is not
    what `desc` says, its diff id (if annotated) included. `CorruptData`: it does not decode, or is no tar where one is
    needed (eStargz, epoch), or has entries behind eStargz's table. `TooLarge`: more than `max_output` bytes unpacked.
    The rest is the store's (`StorageFull`) or the provider's. After any failure, cancellation included, nothing is left
    in the store.
    """
    from_media_type(desc.media_type)
    name = f"convert-{desc.digest}-{compression.type.value}-{compression.effective_level}-{epoch}"
    with tasks.meter(desc.digest, "convert", desc.size) as progress, _writer(store, name) as writer:
        try:
            with (provider or store).reader_at(desc) as reader:
                if reader.size != desc.size and desc.size >= 0:
                    raise SizeMismatch(f"layer {desc.digest}", desc.size, reader.size)
                source = _Checked(reader, desc, progress)
                with Packer(compression, writer.write, threads=threads) as packer:
                    packed = _pass(source, packer, desc, epoch, max_output, threads)
            result = Descriptor(
                compression.type.media_type, writer.digest, writer.status.offset, annotations=packed.annotations
            )
            if before_commit is not None:
                before_commit(result)
            with suppress(AlreadyExists):
                writer.commit(result.size, result.digest, labels)
        except BaseException:
            _discard(store, writer, name)
            raise
    return result


def _writer(store: Store, name: str) -> Writer:
    """A new ingest. What a killed process left in it is overwritten: it cannot be told how far that got."""
    while True:
        check()
        try:
            writer = store.writer(name)
        except RefLocked:
            tasks.sleep(_LOCK_WAIT)
            continue
        try:
            writer.truncate(0)
        except BaseException:
            _discard(store, writer, name)
            raise
        return writer


def _discard(store: Store, writer: Writer, name: str) -> None:
    """Remove an ingest after a failure, which matters more than one of this."""
    writer.close()
    # Somebody who waited for the ingest may have it by now, and overwrites it.
    with tasks.shield(), suppress(BlobteeError):
        store.abort(name)


class _Progress(Protocol):
    def advance(self, nbytes: int, /) -> None: ...


class _Checked:
    """A blob from its start to its end, hashed on the way, in as many parts as it is decoded in."""

    def __init__(self, reader: ReaderAt, desc: Descriptor, progress: _Progress) -> None:
        self.reader = reader
        self._stream = reader.open()
        self._desc = desc
        self._progress = progress
        self._hasher = digester(desc.digest.algorithm)
        self.position = 0

    def read(self, n: int) -> bytes:
        data = self._stream.read(n) or b""
        self._hasher.update(data)
        self.position += len(data)
        self._progress.advance(len(data))
        return data

    def close(self) -> None:
        self._stream.close()

    def check(self) -> None:
        """Read what is left, and compare size and digest."""
        while self.read(_PIECE):
            check()
        if self.position != self.reader.size:
            raise SizeMismatch(f"layer {self._desc.digest}", self.reader.size, self.position)
        actual = digest_of(self._desc.digest.algorithm, self._hasher)
        if actual != self._desc.digest:
            raise DigestMismatch(f"layer {self._desc.digest}", self._desc.digest, actual)


class _Part:
    """The next bytes of a source, up to `end`; closing it leaves the source open."""

    def __init__(self, source: _Checked, end: int) -> None:
        self._source = source
        self._end = end

    def read(self, n: int, /) -> bytes:
        left = self._end - self._source.position
        return self._source.read(min(n, left)) if left > 0 else b""

    def close(self) -> None:
        pass


def _pass(
    source: _Checked,
    packer: Packer,
    desc: Descriptor,
    epoch: int | None,
    max_output: int | None,
    threads: int | None,
) -> Packed:
    """Everything from the source through the packer, checked at both ends."""
    try:
        reader = source.reader
        whole = None  # the digest of all that decoding the source gives, where the packed tar is not just that
        end = reader.size
        if from_media_type(desc.media_type) is Type.GZIP and is_estargz(reader):
            end = payload_nbytes(reader)
        expected = desc.annotations.get(UNCOMPRESSED)
        if expected and (end < reader.size or epoch is not None):
            whole = Sha256()
        decoded = decompress(_Part(source, end), desc.media_type, max_output=max_output, threads=threads)
        with _Hashed(decoded, whole) as tar:
            if epoch is not None:
                times.clamp(tar, packer.write, epoch)
            elif end < reader.size:
                # What the table's offset cuts off must be the table, not the end of a file.
                times.clamp(tar, packer.write, _NEVER)
            else:
                _drain(tar, packer.write)
        if end < reader.size:
            left = None if max_output is None else max(0, max_output - tar.nbytes)
            with _Hashed(decompress(_Part(source, reader.size), max_output=left), whole) as table:
                for number, entry in enumerate(entries(table)):
                    if number:
                        raise CorruptData(f"an eStargz layer with {entry.path[:100]!r} behind its table of contents")
                _drain(table, None)
        source.check()
        packed = packer.finish()
    finally:
        source.close()
    actual = Digest(f"sha256:{whole.hexdigest()}") if whole is not None else packed.content_diff_id
    if expected and actual != expected:
        raise DigestMismatch(f"the tar in layer {desc.digest}", expected, actual)
    return packed


def _drain(stream: io.RawIOBase, write: Callable[[Buffer], object] | None) -> None:
    buffer = bytearray(_PIECE)
    with memoryview(buffer) as view:
        filled = 0
        while True:
            check()
            n = stream.readinto(view[filled:]) or 0
            filled += n
            if filled and (not n or filled == len(view)):
                if write is not None:
                    with view[:filled] as piece:
                        write(piece)
                filled = 0
            if not n:
                return


class _Hashed(io.RawIOBase):
    """`raw`, with what is read of it hashed if there is a hasher; closing it closes `raw`."""

    def __init__(self, raw: io.RawIOBase, hasher: Sha256 | None) -> None:
        super().__init__()
        self._raw = raw
        self._hasher = hasher
        self.nbytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        n = self._raw.readinto(buffer) or 0
        self.nbytes += n
        if self._hasher is not None:
            with memoryview(buffer) as view, view[:n] as piece:
                self._hasher.update(piece)
        return n

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
