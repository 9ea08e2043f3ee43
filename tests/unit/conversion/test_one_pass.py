"""`convert`: both ends checked, and nothing left behind whatever goes wrong."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from blobtee import errors, tasks
from blobtee.compression import Compression, Type, decompress
from blobtee.compression.estargz import TOC_NAME, footer, is_estargz
from blobtee.content import LocalStore, MemoryStore
from blobtee.content.api import ReaderAt, Store
from blobtee.conversion import Packer, convert
from blobtee.oci import Descriptor, Digest
from blobtee.oci.annotations import TOC_DIGEST, UNCOMPRESSED
from blobtee.testing import Generated, images

TAR = images.tar({"etc/name": b"blobtee\n", "bin/data": Generated(3 << 20, seed=1).read(), "empty": b""})
TYPES = list(Type)


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "store") as opened:
        yield opened


def packed(kind: Type, tar: bytes = TAR, threads: int | None = None) -> tuple[bytes, Descriptor]:
    blob = io.BytesIO()
    with Packer(Compression(kind), blob.write, threads=threads) as packer:
        packer.write(tar)
        made = packer.finish()
    data = blob.getvalue()
    return data, Descriptor(kind.media_type, Digest.of(data), len(data), annotations=made.annotations)


class Bytes(ReaderAt):
    def __init__(self, data: bytes, before: Callable[[int], object] = lambda offset: None) -> None:
        self.data = data
        self.size = len(data)
        self.before = before
        self.closed = False

    def readinto_at(self, offset: int, buffer: object) -> int:
        self.before(offset)
        with memoryview(buffer) as view:  # type: ignore[arg-type]
            piece = self.data[offset : offset + len(view)]
            view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self.closed = True


class Source:
    """Gives `reader` for whatever it is asked for."""

    def __init__(self, reader: ReaderAt) -> None:
        self.reader = reader
        self.asked = 0

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        self.asked += 1
        return self.reader


def content(store: Store, desc: Descriptor) -> bytes:
    with store.reader_at(desc) as reader:
        return reader.read_at(0, reader.size)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert [each.name for each in threading.enumerate() if each not in before] == []


def nothing_in(store: Store) -> bool:
    return list(store.walk()) == [] and store.statuses() == []


# ---- what comes out


@pytest.mark.parametrize("target", TYPES, ids=lambda kind: f"to {kind.value}")
@pytest.mark.parametrize("source", TYPES, ids=lambda kind: f"from {kind.value}")
def test_the_tar_stays_and_the_result_is_described_as_it_is(store: Store, source: Type, target: Type) -> None:
    data, desc = packed(source)
    told: list[Descriptor] = []

    def before(made: Descriptor) -> None:
        with pytest.raises(errors.NotFound):
            store.info(made.digest)
        told.append(made)

    result = convert(
        store, desc, Compression(target), provider=Source(Bytes(data)), before_commit=before, labels={"a": "b"}
    )
    blob = content(store, result)
    assert (result.digest, result.size, result.media_type) == (Digest.of(blob), len(blob), target.media_type)
    assert told == [result]
    assert store.info(result.digest).labels == {"a": "b"}
    tar = decompress(io.BytesIO(blob), result.media_type).readall()
    assert Digest.of(tar) == result.annotations[UNCOMPRESSED]
    assert tar == TAR if target is not Type.ESTARGZ else tar.startswith(TAR)
    assert (TOC_DIGEST in result.annotations) is (target is Type.ESTARGZ)
    assert store.statuses() == []


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.value)
def test_the_blob_is_the_same_for_any_number_of_threads(kind: Type) -> None:
    assert len({packed(kind, threads=threads)[1].digest for threads in (1, 2, 5)}) == 1


def test_a_packer_tells_the_tar_from_what_decompressing_gives() -> None:
    for kind in TYPES:
        with Packer(Compression(kind), lambda piece: None) as packer:
            packer.write(TAR)
            made = packer.finish()
        assert (made.content_diff_id, made.content_size) == (Digest.of(TAR), len(TAR))
        assert (made.diff_id == made.content_diff_id) is (kind is not Type.ESTARGZ)
        assert (made.size == made.content_size) is (kind is not Type.ESTARGZ)


@pytest.mark.parametrize("target", TYPES, ids=lambda kind: kind.value)
def test_an_empty_blob_is_an_empty_layer(store: Store, target: Type) -> None:
    desc = Descriptor(Type.GZIP.media_type, Digest.of(b""), 0)
    result = convert(store, desc, Compression(target), provider=Source(Bytes(b"")))
    tar = decompress(io.BytesIO(content(store, result)), result.media_type).readall()
    assert tar == b"" if target is not Type.ESTARGZ else b"stargz.index.json" in tar


def test_a_result_that_is_there_already_is_fine(store: Store) -> None:
    data, desc = packed(Type.GZIP)
    provider = Source(Bytes(data))
    first = convert(store, desc, Compression("zstd"), provider=provider)
    told: list[Descriptor] = []
    assert convert(store, desc, Compression("zstd"), provider=provider, before_commit=told.append) == first
    assert told == [first]
    assert [info.digest for info in store.walk()] == [first.digest]
    assert store.statuses() == []


def test_what_a_killed_process_left_is_overwritten(store: Store) -> None:
    data, desc = packed(Type.GZIP)
    name = f"convert-{desc.digest}-zstd-3-None"
    with store.writer(name) as writer:
        writer.write(b"half of something")
    result = convert(store, desc, Compression("zstd"), provider=Source(Bytes(data)))
    assert decompress(io.BytesIO(content(store, result)), result.media_type).readall() == TAR
    assert store.statuses() == []


def test_many_who_convert_the_same_get_the_same(store: Store) -> None:
    data, desc = packed(Type.GZIP)
    with tasks.Group() as group:
        made = [
            group.spawn(convert, store, desc, Compression(kind), provider=Source(Bytes(data)))
            for kind in (Type.ZSTD, Type.ESTARGZ)
            for _ in range(6)
        ]
    assert len({each.result().digest for each in made}) == 2
    assert store.statuses() == []


# ---- what is refused


def lies() -> Iterator[tuple[str, bytes, Descriptor, type[errors.BlobteeError]]]:
    data, desc = packed(Type.GZIP)
    star, star_desc = packed(Type.ESTARGZ)
    other = Digest.of(b"other")
    described = {UNCOMPRESSED: other}
    yield "another digest", data, Descriptor(desc.media_type, other, desc.size), errors.DigestMismatch
    yield "another size", data, Descriptor(desc.media_type, desc.digest, desc.size + 1), errors.SizeMismatch
    yield "another tar", data, desc.annotated(described), errors.DigestMismatch
    yield "another tar in eStargz", star, star_desc.annotated(described), errors.DigestMismatch
    for name, broken in (
        ("cut off", data[:-9]),
        ("with garbage behind it", data + b"garbage"),
        ("damaged", data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]),
    ):
        yield name, broken, Descriptor(desc.media_type, Digest.of(broken), len(broken)), errors.CorruptData
    yield "not gzip", TAR, Descriptor(desc.media_type, Digest.of(TAR), len(TAR)), errors.CorruptData
    dictionary = zstandard.train_dictionary(2048, [b"%d is a number " % n * 9 for n in range(2000)])
    bound = zstandard.ZstdCompressor(dict_data=dictionary).compress(TAR)
    yield (
        "needs a dictionary",
        bound,
        Descriptor(Type.ZSTD.media_type, Digest.of(bound), len(bound)),
        errors.CorruptData,
    )


@pytest.mark.parametrize("target", TYPES, ids=lambda kind: f"to {kind.value}")
@pytest.mark.parametrize(("data", "desc", "error"), [pytest.param(*rest, id=name) for name, *rest in lies()])
def test_a_source_that_is_not_what_it_is_said_to_be_leaves_nothing(
    store: Store, data: bytes, desc: Descriptor, error: type[Exception], target: Type
) -> None:
    reader = Bytes(data)
    told: list[Descriptor] = []
    with pytest.raises(error):
        convert(store, desc, Compression(target), provider=Source(reader), before_commit=told.append)
    assert (told, reader.closed) == ([], True)
    assert nothing_in(store)


def test_a_diff_id_is_checked_before_times_are_rewritten(store: Store) -> None:
    for kind in TYPES:
        data, desc = packed(kind)
        convert(store, desc, Compression("zstd"), provider=Source(Bytes(data)), epoch=5)
        wrong = desc.annotated({UNCOMPRESSED: Digest.of(b"other")})
        with pytest.raises(errors.DigestMismatch, match="the tar in layer"):
            convert(store, wrong, Compression("zstd"), provider=Source(Bytes(data)), epoch=5)
    assert store.statuses() == []


def test_what_is_no_layer_is_refused_before_it_is_read(store: Store) -> None:
    source = Source(Bytes(TAR))
    desc = Descriptor("application/vnd.example.thing", Digest.of(TAR), len(TAR))
    with pytest.raises(errors.UnsupportedMediaType):
        convert(store, desc, Compression("zstd"), provider=source)
    assert source.asked == 0


def test_a_bomb_ends_at_the_limit(store: Store) -> None:
    bomb = gzip.compress(bytes(50 << 20), 9, mtime=0)
    desc = Descriptor(Type.GZIP.media_type, Digest.of(bomb), len(bomb))
    with pytest.raises(errors.TooLarge):
        convert(store, desc, Compression("zstd"), provider=Source(Bytes(bomb)), max_output=1 << 20)
    assert nothing_in(store)


# ---- what breaks on the way


@pytest.mark.parametrize("failure", [errors.ConnectionFailed("gone"), KeyboardInterrupt(), OSError(5, "broken")])
@pytest.mark.parametrize("target", TYPES, ids=lambda kind: f"to {kind.value}")
def test_a_source_that_fails_on_the_way_leaves_nothing(store: Store, failure: BaseException, target: Type) -> None:
    data, desc = packed(Type.GZIP)

    def fail(offset: int) -> None:
        if 0 < offset < len(data) - 100:
            raise failure

    kind = errors.CorruptData if isinstance(failure, OSError) and not isinstance(failure, errors.BlobteeError) else None
    with pytest.raises(kind or type(failure)):
        convert(store, desc, Compression(target), provider=Source(Bytes(data, fail)))
    assert nothing_in(store)


@pytest.mark.parametrize("target", TYPES, ids=lambda kind: f"to {kind.value}")
def test_cancelling_leaves_nothing(store: Store, target: Type) -> None:
    data, desc = packed(Type.GZIP)
    switch = tasks.Cancellation()

    def cancel(offset: int) -> None:
        if offset:
            switch.cancel("enough")

    with tasks.scope(switch), pytest.raises(errors.Cancelled):
        convert(store, desc, Compression(target), provider=Source(Bytes(data, cancel)))
    assert nothing_in(store)


@pytest.mark.parametrize("call", ["write", "commit"])
@pytest.mark.parametrize("target", TYPES, ids=lambda kind: f"to {kind.value}")
def test_a_store_that_fails_on_the_way_has_nothing_afterwards(
    store: Store, call: str, target: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, desc = packed(Type.GZIP)
    with store.writer("what kind of writer it is") as writer:
        kind = type(writer)
    store.abort("what kind of writer it is")

    def full(*args: object, **options: object) -> None:
        raise errors.StorageFull("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(kind, call, full)
        with pytest.raises(errors.StorageFull):
            convert(store, desc, Compression(target), provider=Source(Bytes(data)))
    assert nothing_in(store)


def test_who_is_told_before_the_commit_may_refuse(store: Store) -> None:
    data, desc = packed(Type.GZIP)

    def refuse(made: Descriptor) -> None:
        raise errors.PermissionDenied("not on this store")

    with pytest.raises(errors.PermissionDenied):
        convert(store, desc, Compression("zstd"), provider=Source(Bytes(data)), before_commit=refuse)
    assert nothing_in(store)


def test_who_comes_next_does_not_hide_why_it_failed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between closing and removing the ingest, another may take it."""
    data, desc = packed(Type.GZIP)
    abort = store.abort
    others = []

    def late(ref: str) -> None:
        others.append(store.writer(ref))
        abort(ref)

    def refuse(made: Descriptor) -> None:
        raise errors.PermissionDenied("not on this store")

    with monkeypatch.context() as patch:
        patch.setattr(store, "abort", late)
        with pytest.raises(errors.PermissionDenied):
            convert(store, desc, Compression("zstd"), provider=Source(Bytes(data)), before_commit=refuse)
    (other,) = others
    other.write(b"its own")
    other.close()
    store.abort(other.status.ref)
    assert nothing_in(store)


def test_waiting_for_somebody_else_can_be_cancelled(store: Store) -> None:
    data, desc = packed(Type.GZIP)
    switch = tasks.Cancellation()
    reader = Bytes(data)
    with store.writer(f"convert-{desc.digest}-zstd-3-None") as writer:
        timer = threading.Timer(0.1, switch.cancel)
        timer.start()
        with tasks.scope(switch), pytest.raises(errors.Cancelled):
            convert(store, desc, Compression("zstd"), provider=Source(reader))
        timer.join()
        assert writer.write(b"on") == 2
    assert not reader.closed


@pytest.mark.parametrize("target", TYPES, ids=lambda kind: f"to {kind.value}")
def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(
    store: Store, target: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = images.tar({f"{number}": Generated(3 << 20, seed=number).read() for number in range(4)})
    data, desc = packed(Type.GZIP, tar)
    with store.writer("what kind of writer it is") as writer:
        kind = type(writer)
    store.abort("what kind of writer it is")
    write = kind.write

    def full(self: object, piece: bytes) -> int:
        if self.status.offset > 5 << 20:  # type: ignore[attr-defined]
            raise errors.StorageFull("no space left")
        return write(self, piece)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(kind, "write", full)
        with pytest.raises(errors.StorageFull):
            convert(store, desc, Compression(target), provider=Source(Bytes(data)))
    assert nothing_in(store)


@pytest.mark.parametrize("nbytes", [-1, 1])
def test_a_source_of_another_size_or_with_another_end_is_told(store: Store, nbytes: int) -> None:
    data, desc = packed(Type.GZIP)
    reader = Bytes(data)
    reader.size += nbytes
    with pytest.raises(errors.SizeMismatch):
        convert(store, desc, Compression("zstd"), provider=Source(reader))
    early = Bytes(data[:-1])
    early.size = len(data)
    with pytest.raises((errors.SizeMismatch, errors.CorruptData)):
        convert(store, desc, Compression("zstd"), provider=Source(early))
    assert reader.closed
    assert early.closed
    assert nothing_in(store)


# ---- eStargz that lies about where its table is


def file(name: str, data: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def star(content: bytes, table: bytes) -> tuple[bytes, Descriptor]:
    first = gzip.compress(content, mtime=0)
    data = first + gzip.compress(table, mtime=0) + footer(len(first))
    assert is_estargz(Bytes(data))
    return data, Descriptor(Type.ESTARGZ.media_type, Digest.of(data), len(data))


@pytest.mark.parametrize("epoch", [None, 5])
@pytest.mark.parametrize("target", TYPES, ids=lambda kind: f"to {kind.value}")
def test_nothing_of_a_layer_is_lost_with_its_table(store: Store, target: Type, epoch: int | None) -> None:
    table = file(TOC_NAME, b"{}")
    half = file("b", table + b"x" * 5000)
    for start, rest in (
        (file("a", b"1"), table + file("b", b"2") + bytes(1024)),
        (file("a", b"1") + half[:512], half[512:] + bytes(1024)),
    ):
        data, desc = star(start, rest)
        with pytest.raises(errors.CorruptData):
            convert(store, desc, Compression(target), provider=Source(Bytes(data)), epoch=epoch)
        assert nothing_in(store)
    data, desc = star(file("a", b"1"), table + bytes(1024))
    result = convert(store, desc, Compression(target), provider=Source(Bytes(data)))
    tar = decompress(io.BytesIO(content(store, result)), result.media_type).readall()
    assert tar.startswith(file("a", b"1"))


def test_the_limit_counts_layer_and_table_together(store: Store) -> None:
    content_, table = file("a", b"1" * 3000), file(TOC_NAME, b" " * 3000) + bytes(1024)
    data, desc = star(content_, table)
    most = len(content_) + len(table)
    with pytest.raises(errors.TooLarge):
        convert(store, desc, Compression("zstd"), provider=Source(Bytes(data)), max_output=most - 1)
    assert nothing_in(store)
    convert(store, desc, Compression("zstd"), provider=Source(Bytes(data)), max_output=most)


# ---- the packer


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.value)
def test_a_packer_keeps_what_it_got_though_the_buffer_changes(kind: Type) -> None:
    blob = io.BytesIO()
    buffer = bytearray(10_000)
    with Packer(Compression(kind), blob.write, threads=2) as packer:
        for start in range(0, len(TAR), len(buffer)):
            piece = TAR[start : start + len(buffer)]
            buffer[: len(piece)] = piece
            assert packer.write(memoryview(buffer)[: len(piece)]) == len(piece)
            buffer[:] = bytes(len(buffer))
        packer.finish()
    assert blob.getvalue() == packed(kind)[0]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.value)
def test_a_packer_raises_what_its_consumer_raises_and_ends(kind: Type, threads: int) -> None:
    def refuse(piece: object) -> None:
        raise errors.StorageFull("no space left")

    def pack() -> None:
        with Packer(Compression(kind), refuse, threads=threads) as packer:
            packer.write(TAR)
            packer.finish()

    with pytest.raises(errors.StorageFull):
        pack()


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.value)
def test_a_packer_is_closed_once_and_for_all(kind: Type) -> None:
    packer = Packer(Compression(kind), lambda piece: None)
    packer.write(TAR)
    packer.close()
    packer.close()
    with pytest.raises(errors.Closed):
        packer.write(TAR)
    with pytest.raises(errors.Closed):
        packer.finish()


# ---- memory

_FLAT = """
import hashlib, pathlib, random, re, sys, tarfile, zlib
from blobtee.compression import Compression
from blobtee.content import LocalStore
from blobtee.content.api import ReaderAt
from blobtee.conversion import convert
from blobtee.oci import Descriptor, Digest

COUNT = 1024

def member(data):
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()

head = tarfile.TarInfo("big")
head.size = COUNT << 20
random_half = random.Random(1).randbytes(1 << 19)
PARTS = [member(head.tobuf()), member(random_half + bytes(1 << 19)), member(bytes(1024))]

class Repeated(ReaderAt):
    size = len(PARTS[0]) + COUNT * len(PARTS[1]) + len(PARTS[2])

    def readinto_at(self, offset, buffer):
        done = 0
        while done < len(buffer) and offset < self.size:
            inside = offset - len(PARTS[0])
            if inside < 0:
                piece = PARTS[0][offset:]
            elif inside < COUNT * len(PARTS[1]):
                piece = PARTS[1][inside % len(PARTS[1]) :]
            else:
                piece = PARTS[2][inside - COUNT * len(PARTS[1]) :]
            n = min(len(piece), len(buffer) - done)
            buffer[done : done + n] = piece[:n]
            done, offset = done + n, offset + n
        return done

    def close(self):
        pass

class Provider:
    def reader_at(self, desc):
        return Repeated()

hashed = hashlib.sha256(PARTS[0])
for _ in range(COUNT):
    hashed.update(PARTS[1])
hashed.update(PARTS[2])
desc = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", Digest("sha256:" + hashed.hexdigest()), Repeated.size)
with LocalStore(sys.argv[1]) as store:
    result = convert(store, desc, Compression(sys.argv[2]), provider=Provider(), epoch=5)
    store.delete(result.digest)
# Not ru_maxrss: that remembers the process before exec, which was a copy of the one that runs the tests.
print(re.search("VmHWM: *(.*) kB", pathlib.Path("/proc/self/status").read_text().replace("\\t", " "))[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["zstd", "estargz"])
def test_memory_stays_flat_in_the_size_of_the_layer(tmp_path: Path, target: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FLAT, str(tmp_path), target], stdout=subprocess.PIPE, check=True, timeout=240
    )
    peak = int(done.stdout)
    assert peak < 128 << 10, f"{peak >> 10} MiB"
