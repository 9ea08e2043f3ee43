"""One hostile blob through everything that a layer can go through; run with a folder, each file in it.

`python -m tests.fuzz.hostile FOLDER` is how `scripts/sanitize` tries what libFuzzer has found. Its targets take the
first bytes of a case for themselves, so each is tried with them and without.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from blobtee import compression, conversion, layers
from blobtee.compression import Compression, Type
from blobtee.content import MemoryStore
from blobtee.errors import BlobteeError
from blobtee.oci import Descriptor, Digest

MAX_OUTPUT = 4 << 20
"""More than any seed unpacks to; a bomb ends here."""
CONTROL_NBYTES = 4


def try_everything(data: bytes, media_type: str, target: Type, folder: Path) -> None:
    """Detect, decode, list, apply and convert `data`. Anything but an error of ours is raised; so is what was left.

    `folder` is empty, and is again afterwards.
    """
    compression.detect(data[:4])
    with contextlib.suppress(BlobteeError):
        for entry in layers.entries(unpacked(data, media_type)):
            with entry.data() as content:
                content.read(100)
    root = folder / "root"
    root.mkdir()
    canary = folder / "canary"
    canary.write_text("untouched")
    try:
        with contextlib.suppress(BlobteeError):
            layers.apply(unpacked(data, media_type), root)
        assert canary.read_text() == "untouched"
        assert sorted(os.listdir(folder)) == ["canary", "root"]
    finally:
        canary.unlink()
        shutil.rmtree(root)
    with MemoryStore() as store:
        desc = Descriptor(media_type, Digest.of(data), len(data))
        with store.writer("hostile") as writer:
            writer.write(data)
            writer.commit()
        with contextlib.suppress(BlobteeError):
            conversion.convert(store, desc, Compression(target), max_output=MAX_OUTPUT)
        assert store.statuses() == [], "a conversion left its ingest behind"
    assert threading.active_count() == 1 or not [
        thread for thread in threading.enumerate() if thread.name.startswith("blobtee")
    ], "threads were left running"


def unpacked(data: bytes, media_type: str) -> io.RawIOBase:
    return compression.decompress(io.BytesIO(data), media_type, max_output=MAX_OUTPUT)


def main() -> None:
    files = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_file())
    with tempfile.TemporaryDirectory(prefix="blobtee-hostile-") as folder:
        for number, path in enumerate(files):
            data = path.read_bytes()
            for stream in (data, data[CONTROL_NBYTES:]):
                kind = Type.GZIP if stream[:2] == b"\x1f\x8b" else Type.UNCOMPRESSED
                try_everything(stream, kind.media_type, list(Type)[number % len(Type)], Path(folder))
    print(f"{len(files)} files through detect, decode, list, apply and convert")


if __name__ == "__main__":
    main()
