"""An image with a small file, and one of some chunks, each between what does not pack."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.tee.rig import Rig
from blobtee.cache import CacheManager
from blobtee.compression import Compression
from blobtee.content import LocalStore
from blobtee.transfer import build, push

KINDS = ("estargz", "zstd", "gzip")
SMALL, SMALL_TEXT = "/usr/small", b"found"
SOME, SOME_NBYTES = "/usr/some", 300_000


def push_image(rig: Rig, folder: Path, kind: str, nbytes: int) -> str:
    """An image of one layer of about `nbytes` bytes, packed as `kind` says, on the rig; its repository and tag.

    `folder` is empty, and is used up.
    """
    tree = folder / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "usr").mkdir()
    chance = random.Random(nbytes)
    for name in ("usr/a", "usr/sn", "usr/z"):  # in this order, with the files to be read between
        with (tree / name).open("wb") as file:
            for left in range(nbytes // 3, 0, -(1 << 20)):
                file.write(chance.randbytes(min(left, 1 << 20)))
    for number in range(1000):
        (tree / "etc" / f"{number}.conf").write_text(f"number = {number}\n" * (number % 50))
    (tree / SMALL[1:]).write_bytes(SMALL_TEXT)
    (tree / SOME[1:]).write_bytes(chance.randbytes(SOME_NBYTES))
    name = f"files/{kind}:{nbytes}"
    with LocalStore(folder / "store") as store:
        cache = CacheManager(store)
        full = f"{rig.host}/{name}"
        with cache.add_directory(str(tree)) as ref, build(ref, store, full, compression=Compression(kind)) as made:
            push(made, full, store, registry=rig.registry)
    return name
