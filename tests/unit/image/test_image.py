"""An image over a lazy ref, in a store on disk."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest

from blobtee.cache import CacheManager
from blobtee.content import LocalStore, MemoryStore
from blobtee.errors import Closed, NotFound
from blobtee.image import Image
from blobtee.oci import Manifest, Platform, parse_document
from blobtee.oci.documents import parse_config
from blobtee.testing import images
from tests.unit.cache.support import IMAGE, Source, stack


def make(store: LocalStore | MemoryStore, source: Source, made: images.ImageSource) -> Image:
    ref = stack(CacheManager(store), source, list(made.layers)) if made.layers else None
    manifest = parse_document(made.manifest)
    assert isinstance(manifest, Manifest)
    return Image(IMAGE, made.descriptor, manifest, parse_config(made.config), ref, store, Platform.current())


def test_reading_a_file_brings_the_layers_it_needs_and_no_others(tmp_path: Path) -> None:
    made = images.image([{"big": b"x" * 100_000}, {"etc": None, "etc/conf": b"one"}, {"etc": None, "etc/conf": b"two"}])
    source = Source(*made.layers)
    with LocalStore(tmp_path) as store, make(store, source, made) as image:
        with image.open("/etc/conf") as file:
            assert (file.size, io.BufferedReader(file).read()) == (3, b"two")
        assert source.opened == [made.layers[2].descriptor.digest]
        assert image.lookup("/big").size == 100_000
        assert sorted(source.opened) == sorted(layer.descriptor.digest for layer in made.layers)
        assert [node.path for node in image.walk()] == ["big", "etc", "etc/conf"]
        with pytest.raises(NotFound):
            image.lookup("/nothing")


def test_an_image_without_layers_is_empty_and_closing_releases(tmp_path: Path) -> None:
    empty = images.image([])
    with MemoryStore() as store:
        with make(store, Source(), empty) as image:
            assert list(image.walk()) == []
        made = images.image([{"f": b"1"}])
        image = make(store, Source(*made.layers), made)
        assert image.ref is not None
        image.close()
        image.close()
        with pytest.raises(Closed):
            image.ref.clone()


def test_two_stores_on_one_root_download_once(tmp_path: Path) -> None:
    made = images.image([{"f": bytes(3_000_000)}])
    source = Source(*made.layers)
    with LocalStore(tmp_path) as one, LocalStore(tmp_path) as two:
        opened = [make(store, source, made) for store in (one, two) for _ in range(8)]
        failures: list[Exception] = []

        def fetch(image: Image) -> None:
            try:
                image.get_remote().unlazy()
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=fetch, args=(image,)) for image in opened]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert source.opened == [made.layers[0].descriptor.digest]
        assert len({image.ref.id for image in opened if image.ref}) == 1
