"""Bytes and requests: what is fetched for what is needed, and how many answers the first byte waits for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.tee import layers
from benchmarks.tee.rig import Rig
from benchmarks.tee.rows import Row, count, share
from blobtee.compression import detect
from blobtee.content import LocalStore, Trust
from blobtee.image import Image
from blobtee.seeking import tables
from blobtee.tee import Tee, source_of
from blobtee.tee.map import CHUNK
from blobtee.transfer import pull

LAYER = 12 << 20
"""Bytes of a layer. What its files are read by must be less than a third of it: else the rest comes too."""


def fetched(rig: Rig, folder: Path) -> Iterator[Row]:
    """Bytes fetched / bytes needed."""
    desc = rig.blob((24 << 20) + 4321)
    with LocalStore(folder / "sniff") as store:
        tee = Tee(store)
        rig.reset()
        with tee.reader_at(desc, lambda: source_of(rig.repository(), desc), Trust.RAW) as reader:
            detect(reader.read_at(0, 4))
        tee.close()
        yield count("bytes to tell a layer's type", rig.count().nbytes, CHUNK, " B")
    for trust in (Trust.STREAMED, Trust.BLOB):
        with LocalStore(folder / trust.value) as store:
            tee = Tee(store)
            rig.reset()
            with tee.reader_at(desc, lambda: source_of(rig.repository(), desc), trust) as reader:
                for at in range(0, desc.size, 100_000):
                    reader.read_at(at, 100_000)
            tee.close()
            seen = rig.count()
            yield share(
                f"bytes sent / bytes of a full read, {trust.value}", seen.nbytes, desc.size, note=f"{seen.requests} GET"
            )


def files(rig: Rig, folder: Path) -> Iterator[Row]:
    """One file out of a layer; the requests until its first byte."""
    for kind in layers.KINDS:
        made = folder / kind
        made.mkdir()
        name = layers.push_image(rig, made, kind, LAYER)
        with LocalStore(made / "other") as store:
            with pull(f"{rig.host}/{name}", store, lazy=True, registry=rig.registry) as image:
                yield from _file(rig, image, kind)


def _file(rig: Rig, image: Image, kind: str) -> Iterator[Row]:
    rig.reset()
    with image.open(layers.SMALL, trust=Trust.ATTESTED) as file:
        assert file.read(1) == layers.SMALL_TEXT[:1]
    cold = rig.count()
    wanted = _chunks(image, layers.SOME)
    rig.reset()
    with image.open(layers.SOME, trust=Trust.ATTESTED) as file:
        assert file.read(1)
        first = rig.count().requests
        assert len(file.readall()) == layers.SOME_NBYTES - 1
    known = rig.count()
    note = f"{len(wanted)} of {CHUNK >> 10} KiB"
    yield count(f"answers before the first byte of a file, index known, {kind}", first, 2)
    yield count(f"  index not known, {kind}", cold.requests, 3)
    yield share(f"bytes sent / chunks of one file, {kind}", known.nbytes, len(wanted) * CHUNK, note=note)


def _chunks(image: Image, path: str) -> set[int]:
    """Chunks of the layer that the file lies in, by the layer's own table of contents, which is here already."""
    [desc] = image.manifest.layers
    with image.get_remote().provider.reader_at(desc, Trust.RAW) as reader:
        contents = tables.contents(desc, reader)
    extents = contents.extents(entry for entry in contents.entries if f"/{entry.path}" == path)
    return {chunk for start, end in extents for chunk in range(start // CHUNK, -(-end // CHUNK))}


def by_name(rig: Rig, folder: Path) -> Iterator[Row]:
    """From nothing but a name to a byte of a layer: manifest, config, and the chunk."""
    name = layers.push_image(rig, folder, "gzip", 1 << 20)
    with LocalStore(folder / "other") as store:
        rig.reset()
        with pull(f"{rig.host}/{name}", store, lazy=True, registry=rig.registry) as image:
            remote = image.get_remote()
            with remote.provider.reader_at(remote.descriptors[-1], Trust.RAW) as reader:
                reader.read_at(remote.descriptors[-1].size // 2, 1)
        yield count("  of a layer, known by its image's name alone", rig.count().requests, 3)
