"""Serves one file as a registry's blob until standard input closes; prints its URL."""

from __future__ import annotations

import sys
from pathlib import Path

from blobtee.testing import MemoryRegistry
from blobtee.testing.bodies import File


def main() -> None:
    with MemoryRegistry() as registry:
        digest = registry.add_blob("bench/sample", File(Path(sys.argv[1])))
        print(f"{registry.url}/v2/bench/sample/blobs/{digest}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
