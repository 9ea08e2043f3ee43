"""Layers that come in the background of reads."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from blobtee import tasks
from blobtee.compression import Compression
from blobtee.content import LocalStore, MemoryStore
from blobtee.errors import Cancelled, InvalidArgument, LazyUnavailable, RemoteError
from blobtee.image import Image
from blobtee.registry import Registry
from blobtee.testing import Answer, MemoryRegistry, Request, image
from blobtee.transfer import pull, push, verify

NOISE = random.Random(2).randbytes(3 << 20)
PART = random.Random(3).randbytes(1 << 20)
"""Less than that share of its layer which has all the rest come, when it is here while somebody reads."""
BASE = {"base/a": NOISE, "base/b": NOISE[::-1], "base/part": PART}
TOP = {"top/late": NOISE[5:], "top/small": b"first", "top/big": NOISE[7:]}


@pytest.fixture
def name(server: MemoryRegistry, client: Registry, store: LocalStore, tmp_path: Path) -> str:
    """An image of two layers with lists of their files."""
    packed = f"{server.host}/team/packed"
    with LocalStore(tmp_path / "builder") as builder:
        with pull(image([BASE, TOP]).push(server, "team/app"), builder, registry=client) as pulled:
            push(pulled, packed, builder, compression=Compression("zstd", force=True), registry=client)
    server.reset()
    return packed


def lazy_layers(image: Image) -> list[bool]:
    assert image.ref is not None
    return [layer.is_lazy() for layer in image.ref.layer_chain()]


def test_an_image_is_known_at_once_and_filled_behind_its_readers(
    server: MemoryRegistry, client: Registry, store: LocalStore, name: str
) -> None:
    events: list[tasks.Event] = []
    with tasks.reporting(events.append), pull(name, store, lazy=True, registry=client) as pulled:
        filling = pulled.fill(["/top/small", "nothing", "/base"])
        with pulled.open("top/late", trust="attested") as file:
            assert file.read() == NOISE[5:]
        filling.wait()
        assert filling.done
        assert filling.missing == ("nothing",)
        assert filling.prefetched >= 2 * len(NOISE)
        assert lazy_layers(pulled) == [False, False]
        assert {event.action for event in events} == {"prefetch", "copy"}
    # Some MiB may be on their way by a request that ends early, so that a reader need not wait.
    assert server.counters.sent["blob"] <= 1.5 * sum(layer.size for layer in pulled.manifest.layers)
    assert not verify(store).problems


def test_hints_alone_bring_nothing_else_and_in_their_order(
    server: MemoryRegistry, client: Registry, store: LocalStore, name: str
) -> None:
    with pull(name, store, lazy=True, registry=client) as pulled:
        pulled.fill(["top/small"], rest=False).wait()
        assert server.counters.sent["blob"] < 1 << 20
        pulled.fill(["base/part"], rest=False).wait()
        before = server.counters.sent["blob"]
        assert before < 3 << 20
        with pulled.open("base/part", trust="attested") as file:
            assert file.read() == PART
        assert server.counters.sent["blob"] == before
        assert lazy_layers(pulled) == [True, True]


def test_a_closed_image_is_filled_no_more_and_the_next_filling_goes_on_there(
    server: MemoryRegistry, client: Registry, store: LocalStore, name: str
) -> None:
    come: dict[str, int] = {}

    def report(event: tasks.Event) -> None:
        come[event.digest] = event.current

    with tasks.reporting(report), pull(name, store, lazy=True, registry=client) as pulled:
        filling = pulled.fill(bandwidth="4MB/s")
        while sum(come.values()) < 2 << 20:
            tasks.sleep(0.01)
    assert filling.done
    with pytest.raises(Cancelled):
        filling.wait()
    with pull(name, store, lazy=True, registry=client) as pulled:
        assert True in lazy_layers(pulled)
        server.reset()
        pulled.fill().wait()
        assert lazy_layers(pulled) == [False, False]
        assert server.counters.sent["blob"] <= sum(layer.size for layer in pulled.manifest.layers) - (2 << 20)


def test_who_waits_for_a_filling_and_gives_up_does_not_end_it(client: Registry, store: LocalStore, name: str) -> None:
    with pull(name, store, lazy=True, registry=client) as pulled:
        filling = pulled.fill(bandwidth="4MB/s")
        with tasks.scope() as cancellation:
            cancellation.cancel()
            with pytest.raises(Cancelled):
                filling.wait()
        filling.wait()
        assert lazy_layers(pulled) == [False, False]


def test_a_source_that_is_gone_is_told_to_who_waits(
    server: MemoryRegistry, client: Registry, store: LocalStore, name: str
) -> None:
    with pull(name, store, lazy=True, registry=client) as pulled:

        @server.fault
        def gone(request: Request) -> Answer | None:
            return Answer(404) if request.kind == "blob" else None

        filling = pulled.fill()
        with pytest.raises((LazyUnavailable, RemoteError)):
            filling.wait()


@pytest.mark.parametrize("memory", [False, True])
def test_a_pull_keeps_to_its_bandwidth(client: Registry, store: LocalStore, name: str, memory: bool) -> None:
    begun = time.monotonic()
    with pull(name, MemoryStore() if memory else store, registry=client, bandwidth="8MB/s") as pulled:
        size = sum(layer.size for layer in pulled.manifest.layers)
    assert time.monotonic() - begun >= size / 8e6 - 1.1


def test_no_such_bandwidth(client: Registry, store: LocalStore, name: str) -> None:
    with pytest.raises(InvalidArgument, match="40Mbit/s"):
        pull(name, store, registry=client, bandwidth="quick")
    with pull(name, store, lazy=True, registry=client) as pulled, pytest.raises(InvalidArgument):
        pulled.fill(bandwidth=1)


def test_a_single_path_is_not_taken_for_its_letters(
    server: MemoryRegistry, client: Registry, store: LocalStore, name: str
) -> None:
    with pull(name, store, lazy=True, registry=client) as pulled:
        for bring in (pulled.fill, pulled.prefetch):
            with pytest.raises(InvalidArgument, match="not one path"):
                bring("/top/small")
    assert not server.counters.sent["blob"], "`/` is everything"


def test_an_image_without_layers_is_filled_already(server: MemoryRegistry, client: Registry, store: LocalStore) -> None:
    with pull(image([]).push(server, "team/empty"), store, lazy=True, registry=client) as pulled:
        filling = pulled.fill(["a"])
        filling.wait()
        assert filling.missing == ("a",)
