"""SHA-256 against NIST's vectors and hashlib: one stream, lanes, saved states, misuse."""

from __future__ import annotations

import copy
import hashlib
import mmap
import signal
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.core import Sha256, cpu_features, crc32c, sha256_many, update_many
from blobtee.errors import InvalidArgument
from tests.unit.core.support import collide, mixed, quick, thorough

# FIPS 180-2 appendix B; CAVP SHA256ShortMsg and SHA256LongMsg; NIST's additional examples on the limits of padding.
VECTORS = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
    bytes.fromhex("d3"): "28969cdfa74a12c82f3bad960b0b000aca2ac329deea5c2328ebc6f2ba9802c1",
    bytes.fromhex("11af"): "5ca7133fa735326081558ac312c620eeca9970d1e70a4b95533d956f072d1f98",
    bytes.fromhex("b4190e"): "dff2e73091f6c05e528896c4c831b9448653dc2ff043528f6769437bc7b975c2",
    bytes.fromhex("74ba2521"): "b16aa56be3880d18cd41e68384cf1ec8c17680c45a02b1575dc1518923ae8b0e",
    bytes.fromhex(
        "5a86b737eaea8ee976a0a24da63e7ed7eefad18a101c1211e2b3650c5187c2a8"
        "a650547208251f6d4237e661c7bf4c77f335390394c37fa1a9f9be836ac28509"
    ): "42e61e174fbb3897d6dd6cef3dd2802fe67b331953b06114a65c772859dfc1aa",
    b"\xbd": "68325720aabd7c82f30f554b313d0570c95accbb7dc4b5aae11204c08ffe732b",
    bytes.fromhex("c98c8e55"): "7abc22c0ae5af26ce93dbb94433a0e0b2e119d014f8e7f65bd56c61ccccd9504",
    bytes(55): "02779466cdec163811d078815c633f21901413081449002f24aa3e80f0b88ef7",
    bytes(56): "d4817aa5497628e7c77e6b606107042bbba3130888c5f47a375e6179be789fbb",
    bytes(57): "65a16cb7861335d5ace3c60718b5052e44660726da4cd13bb745381b235a1785",
    bytes(64): "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b",
    bytes(1000): "541b3e9daa09b20bf85fa273e5cbd3e80185aa4ec298e765db87742b70138a53",
    b"\x41" * 1000: "c2e686823489ced2017f6059b8b239318b6364f6dcd835d0a519105a1eadd6e4",
    b"\x55" * 1005: "f4d62ddec0f3dd90ea1380fa16a5ff8dc4c54b21740650f24afc4120903552b0",
    b"a" * 1_000_000: "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
    bytes(1_000_000): "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025",
}


def reference(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_nist_vectors() -> None:
    for message, digest in VECTORS.items():
        assert Sha256(message).hexdigest() == digest
    assert [found.hex() for found in sha256_many(VECTORS)] == list(VECTORS.values())


def test_nist_monte_carlo() -> None:
    # SHAVS section 6.4, seed and results of CAVP's SHA256Monte
    seed = bytes.fromhex("6d1e72ad03ddeb5de891e572e2396f8da015d899ef0e79503152d6010a3fe691")
    results = []
    for _ in range(100):
        a = b = c = seed
        for _ in range(1000):
            a, b, c = b, c, Sha256(a + b + c).digest()
        seed = c
        results.append(seed.hex())
    assert results[0] == "e93c330ae5447738c8aa85d71a6c80f2a58381d05872d26bdd39f1fcd4f2b788"
    assert results[1] == "2e78f8c8772ea7c9331d41ed3f9cdf27d8f514a99342ee766ee3b8b0d0b121c0"
    assert results[99] == "6a912ba4188391a78e6f13d88ed2d14e13afce9db6f7dcbf4a48c24f3db02778"


def test_every_length_around_a_block() -> None:
    data = mixed(300)
    for n in range(300):
        assert Sha256(data[:n]).digest() == reference(data[:n]), n


def test_looks_like_hashlib() -> None:
    ours, theirs = Sha256(), hashlib.sha256()
    assert (ours.name, ours.digest_size, ours.block_size) == (theirs.name, theirs.digest_size, theirs.block_size)
    assert ours.digest() == theirs.digest()
    ours.update(b"abc")
    assert ours.hexdigest() == ours.hexdigest() == hashlib.sha256(b"abc").hexdigest()
    assert ours.nbytes == 3


@thorough
@given(st.lists(st.binary(max_size=300), max_size=12))
def test_pieces(pieces: list[bytes]) -> None:
    ours, theirs = Sha256(), hashlib.sha256()
    for piece in pieces:
        ours.update(piece)
        theirs.update(piece)
        assert ours.digest() == theirs.digest()
    assert ours.nbytes == sum(map(len, pieces))


def test_copy_is_independent() -> None:
    first = Sha256(b"a" * 70)
    second = first.copy()
    first.update(b"b")
    second.update(b"c")
    assert first.digest() == reference(b"a" * 70 + b"b")
    assert second.digest() == reference(b"a" * 70 + b"c")


# ---- buffers


def test_takes_any_contiguous_buffer() -> None:
    data = bytes(range(256)) * 33
    with mmap.mmap(-1, len(data)) as mapped:
        mapped[:] = data
        kinds: list[Any] = [data, bytearray(data), memoryview(data)[:], array("I", data), mapped]
        kinds.append(memoryview(data).cast("H"))
        for kind in kinds:
            assert Sha256(kind).digest() == reference(data)
            assert crc32c(kind) == crc32c(data)
        assert sha256_many(kinds) == [reference(data)] * len(kinds)
        # nothing may hold on to the buffer, or the mapping could not be closed
        del kinds, kind


@pytest.mark.parametrize("bad", [memoryview(b"abcdef")[::2], memoryview(b"abcdef")[::-1], "text", 5, None, [1]])
def test_refuses_other_things(bad: Any) -> None:
    hasher = Sha256(b"before")
    calls: list[Callable[[], object]] = [
        lambda: Sha256(bad),
        lambda: hasher.update(bad),
        lambda: sha256_many([b"x", bad]),
        lambda: update_many([(hasher, bad)]),
        lambda: crc32c(bad),
        lambda: Sha256.from_state(bad),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    assert hasher.digest() == reference(b"before")


def test_update_many_wants_our_objects() -> None:
    theirs: Any = hashlib.sha256()
    with pytest.raises(TypeError, match="Sha256"):
        update_many([(theirs, b"x")])


def test_a_bytearray_can_grow_again_after_a_call() -> None:
    data = bytearray(b"x" * 100)
    Sha256(data)
    sha256_many([data, data])
    data += b"y"


# ---- lanes


@thorough
@given(
    st.lists(st.integers(0, 1000) | st.sampled_from([0, 1, 55, 56, 63, 64, 65, 119, 120, 127, 128, 4096]), max_size=14)
)
def test_many_of_uneven_lengths(lengths: list[int]) -> None:
    buffers = [mixed(n, seed=i) for i, n in enumerate(lengths)]
    assert sha256_many(buffers) == [reference(data) for data in buffers]


@pytest.mark.parametrize("n", range(8))
def test_many_with_one_long_at_each_place(n: int) -> None:
    buffers = [mixed(100 + i, seed=i) for i in range(8)]
    buffers[n] = mixed(50_000, seed=n)
    assert sha256_many(iter(buffers)) == [reference(data) for data in buffers]


@thorough
@given(st.data())
def test_update_many(data: st.DataObject) -> None:
    streams = data.draw(st.integers(0, 7))
    ours = [Sha256() for _ in range(streams)]
    theirs = [hashlib.sha256() for _ in range(streams)]
    for _ in range(data.draw(st.integers(1, 4))):
        chosen = data.draw(st.lists(st.integers(0, streams - 1), unique=True)) if streams else []
        pieces = [data.draw(st.binary(max_size=250)) for _ in chosen]
        update_many([(ours[i], piece) for i, piece in zip(chosen, pieces, strict=True)])
        for i, piece in zip(chosen, pieces, strict=True):
            theirs[i].update(piece)
    assert [hasher.digest() for hasher in ours] == [hasher.digest() for hasher in theirs]
    assert len({hasher.digest() for hasher in ours}) == len({hasher.digest() for hasher in theirs})


def test_update_many_refuses_the_same_object_twice() -> None:
    one, other = Sha256(b"1"), Sha256(b"2")
    with pytest.raises(InvalidArgument, match="twice"):
        update_many([(one, b"x" * 100), (other, b"y"), (one, b"z")])
    assert (one.digest(), other.digest()) == (reference(b"1"), reference(b"2"))


def test_lanes_fit_the_path() -> None:
    features = cpu_features()
    assert features.sha256_lanes == {"shani": 3, "armv8-sha2": 2, "portable": 1}[features.sha256]


# ---- saved states


@quick
@given(st.binary(max_size=400), st.binary(max_size=200))
def test_state_round_trip(before: bytes, after: bytes) -> None:
    first = Sha256(before)
    state = first.state()
    second = Sha256.from_state(state)
    assert second.nbytes == len(before)
    assert second.state() == state
    second.update(after)
    assert second.digest() == reference(before + after)
    assert len(state) == 52 + len(before) % 64 <= 115


def test_state_is_the_same_on_every_path() -> None:
    # written once on one machine: a state must be readable wherever the ingest goes on
    state = Sha256(b"blobtee" * 20).state()
    assert state[:16].hex() == "6274736861320001000000000000008c"
    assert state[48:60] == (b"blobtee" * 20)[128:]
    assert crc32c(state[:-4]) == int.from_bytes(state[-4:], "big")


@given(st.integers(0, 4), st.binary(max_size=1000), st.integers(1, 5))
def test_chaining_values(blocks: int, data: bytes, each: int) -> None:
    before, every = b"b" * 64 * blocks, 64 * each
    hasher = Sha256(before)
    values = hasher.update_chained(data, every)
    assert hasher.digest() == hashlib.sha256(before + data).digest()
    cuts = range(0, len(data), every)
    assert len(values) == 32 * (len(data) // every)
    starts = [Sha256(before).chaining_value(), *(values[at : at + 32] for at in range(0, len(values), 32))]
    for start, value, at in zip(starts, starts[1:], cuts, strict=False):
        part = Sha256.from_chaining_value(start, len(before) + at)
        part.update(data[at : at + every])
        assert part.chaining_value() == value
    last = Sha256.from_chaining_value(starts[-1], len(before) + len(data) // every * every)
    last.update(data[len(data) // every * every :])
    assert last.digest() == hasher.digest()


def test_chaining_values_are_between_blocks() -> None:
    hasher = Sha256(b"x")
    with pytest.raises(InvalidArgument):
        hasher.chaining_value()
    with pytest.raises(InvalidArgument):
        hasher.update_chained(bytes(64), 64)
    assert hasher.nbytes == 1
    for every in (-64, 0, 63, 65, 1 << 63):
        with pytest.raises(InvalidArgument):
            Sha256().update_chained(bytes(128), every)
    for value, nbytes in ((bytes(31), 0), (bytes(32), 1), (bytes(32), -64), (bytes(32), 1 << 61)):
        with pytest.raises(InvalidArgument):
            Sha256.from_chaining_value(value, nbytes)


def test_damaged_states_are_refused() -> None:
    good = Sha256(b"x" * 77).state()
    damaged = [b"", good[:-1], good + b"\0", good[:10], bytes(len(good))]
    damaged += [good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in range(len(good))]
    for state in damaged:
        with pytest.raises(InvalidArgument, match="state"):
            Sha256.from_state(state)


def test_impossible_states_are_refused() -> None:
    def resealed(body: bytes) -> bytes:
        return body + crc32c(body).to_bytes(4, "big")

    empty = Sha256().state()[:-4]
    for body in (
        empty[:16] + bytes(32),  # no message shorter than a block has this
        empty[:6] + b"\0\2" + empty[8:],  # a version to come
        empty[:8] + (1 << 61).to_bytes(8, "big") + empty[16:],  # too long
    ):
        with pytest.raises(InvalidArgument):
            Sha256.from_state(resealed(body))

    # the longest message there is, one byte at a time
    longest = Sha256.from_state(resealed(empty[:8] + ((1 << 61) - 64).to_bytes(8, "big") + empty[16:]))
    longest.update(b"x" * 63)
    digest = longest.digest()
    calls: list[Callable[[], None]] = [
        lambda: longest.update(b"x"),
        lambda: update_many([(Sha256(), b"y"), (longest, b"x")]),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="2\\*\\*61"):
            call()
    assert longest.digest() == digest
    assert longest.nbytes == (1 << 61) - 1


# ---- threads


@pytest.fixture
def long_data() -> Iterator[memoryview]:
    # anonymous memory that was never written costs nothing until it is read
    with mmap.mmap(-1, 24 << 20, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
        yield view


@pytest.mark.parametrize(
    "intrude",
    [
        lambda hasher: hasher.update(b""),
        lambda hasher: hasher.digest(),
        lambda hasher: hasher.copy(),
        lambda hasher: hasher.state(),
        lambda hasher: hasher.nbytes,
        lambda hasher: update_many([(Sha256(), b""), (hasher, b"")]),
    ],
)
def test_a_second_thread_is_refused(long_data: memoryview, intrude: Callable[[Sha256], object]) -> None:
    hasher = Sha256()
    rounds = 0

    def work() -> None:
        nonlocal rounds
        hasher.update(long_data)
        rounds += 1

    assert collide(work, lambda: intrude(hasher))
    assert hasher.nbytes == rounds * len(long_data)


def test_a_refused_update_many_changes_nothing(long_data: memoryview) -> None:
    busy, idle = Sha256(), Sha256(b"idle")
    assert collide(lambda: busy.update(long_data), lambda: update_many([(idle, b""), (busy, b"")]))
    assert idle.digest() == reference(b"idle")
    idle.update(b"!")
    assert idle.digest() == reference(b"idle!")


def test_threads_with_their_own_objects() -> None:
    data = [mixed(200_000, seed=i) for i in range(4)]
    digests: dict[int, bytes] = {}

    def work(i: int) -> None:
        hasher = Sha256()
        for at in range(0, len(data[i]), 7001):
            hasher.update(data[i][at : at + 7001])
        digests[i] = hasher.digest()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [digests[i] for i in range(4)] == [reference(piece) for piece in data]


def test_an_interrupt_while_hashing_leaves_the_buffer_to_its_owner() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def hash_until_interrupted() -> None:
        with memoryview(bytearray(64 << 20)) as view:
            signal.setitimer(signal.ITIMER_REAL, 0.005)
            while True:
                Sha256().update(view)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            hash_until_interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_copy_by_the_copy_module_is_independent_too() -> None:
    hasher = Sha256(b"a")
    other = copy.copy(hasher)
    other.update(b"b")
    assert hasher.hexdigest() == hashlib.sha256(b"a").hexdigest()
    assert other.hexdigest() == hashlib.sha256(b"ab").hexdigest()


@given(st.lists(st.binary(max_size=200)))
def test_appending_gives_the_digest_so_far(parts: list[bytes]) -> None:
    hasher, message = Sha256(), b""
    for part in parts:
        message += part
        assert hasher.append(memoryview(part)) == reference(message)
        assert hasher.nbytes == len(message)
    assert hasher.digest() == reference(message)


def test_appending_too_much_changes_nothing() -> None:
    hasher = Sha256.from_chaining_value(Sha256(bytes(64)).chaining_value(), (1 << 61) - 64)
    before = hasher.digest()
    with pytest.raises(InvalidArgument):
        hasher.append(bytes(64))
    assert hasher.digest() == before
