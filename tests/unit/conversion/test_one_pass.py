"""`convert`: both ends checked, and nothing left behind whatever goes wrong."""

from __future__ import annotations

import gzip
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from blobtee import errors, tasks
from blobtee.compression import Compression, Type, decompress
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
