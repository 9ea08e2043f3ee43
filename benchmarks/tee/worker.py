"""One process of several that have a blob by the same tee: `python -m benchmarks.tee.worker`, arguments as below.

Prints a line of JSON when it is done, if it gets that far.
"""

from __future__ import annotations

import argparse
import json
import random
from concurrent.futures import ThreadPoolExecutor

from benchmarks.tee.origin import REPOSITORY
from benchmarks.tee.rig import client
from blobtee.content import LocalStore, Trust
from blobtee.oci import Descriptor, Digest
from blobtee.tee import Tee, map, source_of
from blobtee.tee.map import CHUNK
from blobtee.tee.source import Source

SPACING = 4
"""Of how many chunks one is read by those who read all over: of more than a third of a blob, the rest comes too."""


def scatter(tee: Tee, desc: Descriptor, source: Source, readers: int, seed: int) -> set[int]:
    """So many readers at once, each reading of every fourth chunk, all of them in an order of his own; what they
    wanted."""
    wanted = range(0, desc.size // CHUNK, SPACING)

    def read(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        with tee.reader_at(desc, lambda: source, Trust.RAW) as reader:
            for chunk in chance.sample(wanted, len(wanted)):
                reader.read_at(chunk * CHUNK + chance.randrange(CHUNK // 2), 100)

    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read, range(readers)))
    return set(wanted)


def io() -> dict[str, int]:
    """Bytes that this process has read and written of and to files so far (proc(5))."""
    with open("/proc/self/io") as file:
        return {name: int(value) for name, value in (line.split(": ") for line in file)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tee.worker", description=__doc__)
    parser.add_argument("work", choices=["fill", "scatter"])
    parser.add_argument("host")
    parser.add_argument("root")
    parser.add_argument("digest")
    parser.add_argument("size", type=int)
    parser.add_argument("--readers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rebooted", action="store_true", help="the machine went down since the last process")
    options = parser.parse_args()
    desc = Descriptor("", Digest(options.digest), options.size)
    if options.rebooted:
        map.boot_id = lambda: "another run of the machine"
    with client() as registry, LocalStore(options.root) as store:
        tee = Tee(store)
        source = source_of(registry.repository(f"{options.host}/{REPOSITORY}"), desc)
        before = io()
        if options.work == "fill":
            tee.fill(desc, lambda: source)
        else:
            scatter(tee, desc, source, options.readers, options.seed)
        tee.close()
        after = io()
    print(json.dumps({"read": after["rchar"] - before["rchar"], "written": after["wchar"] - before["wchar"]}))


if __name__ == "__main__":
    main()
