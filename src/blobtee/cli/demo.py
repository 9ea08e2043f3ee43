"""`blobtee demo`: the main job, on real input, with figures."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from blobtee import transfer
from blobtee.cache import RefConfig
from blobtee.cli import machine
from blobtee.cli.session import AddressType, PlatformType, Session, verb
from blobtee.cli.sizes import nbytes
from blobtee.compression import Compression
from blobtee.content import LocalStore, total_size
from blobtee.errors import Internal, NotFound
from blobtee.image import Image
from blobtee.layers import EntryType
from blobtee.oci import Platform
from blobtee.registry import Registry
from blobtee.tasks import Event, Reporter, reporting
from blobtee.tasks.progress import current_reporter
from blobtee.testing import MemoryRegistry
from blobtee.wording import counted

_LIKELY_FILES = ("/etc/os-release", "/usr/lib/os-release", "/etc/passwd", "/etc/hosts")
_PIECE = 1 << 20


@dataclass(frozen=True)
class Step:
    """What one step did. `moved` are bytes of layers that crossed the network, `read` bytes it made available."""

    name: str
    moved: int
    seconds: float
    outcome: str
    read: int = 0

    @property
    def rate(self) -> str:
        return f"{nbytes(self.read / self.seconds)}/s" if self.read and self.seconds > 0 else ""


@click.command()
@click.argument("address", metavar="[IMAGE]", required=False, type=AddressType(remote_only=True))
@click.option("--push-to", type=AddressType(remote_only=True), help="With IMAGE: where to push it in the last step.")
@click.option("--platform", type=PlatformType(), help="Image of an index; default: this machine's.")
@verb(remote=True)
def command(session: Session, address: str | None, push_to: str | None, platform: Platform | None) -> int:
    """Do the main job: open an image lazily, read a file, bring all layers, check and convert them, push it on.

    Without IMAGE it is an image of this machine's own files, more than 100 MB in three layers, on a registry in this
    process. With IMAGE it is that one; the push is skipped unless --push-to says where to. The store is a temporary
    one: nothing is left behind here.

    \b
    Examples:
      blobtee demo
      blobtee demo docker.io/library/python:3.12
      blobtee demo registry.example/team/app:1 --push-to registry.example/team/demo:1
    """
    if push_to and not address:
        raise click.UsageError("--push-to needs an IMAGE")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blobtee-demo-")))
        embedded: MemoryRegistry | None = None
        path: str | None = None
        if address is None:
            session.output.note("making an image of this machine's files …")
            embedded = stack.enter_context(MemoryRegistry(root=folder))
            address, path = machine.put_image(embedded, folder)
            push_to = f"{embedded.host}/demo/second:latest"
        registry = stack.enter_context(session.registry(address))
        store = stack.enter_context(LocalStore(folder / "store"))
        job = _Job(store, registry, embedded)
        steps = job.run(address, path, push_to, platform)
        _show(session, address, steps)
    return 0


class _Job:
    def __init__(self, store: LocalStore, registry: Registry, embedded: MemoryRegistry | None) -> None:
        self._store = store
        self._registry = registry
        self._embedded = embedded
        self._moved = 0

    def run(self, address: str, path: str | None, push_to: str | None, platform: Platform | None) -> list[Step]:
        steps = []
        with self._watched() as watch:
            image = transfer.pull(address, self._store, lazy=True, platform=platform, registry=self._registry)
            documents = total_size([image.manifest.descriptor, image.manifest.config])
            layers = image.manifest.layers
            text = f"{counted(len(layers), 'layer')} of {nbytes(total_size(layers))}"
            text += f" known by {nbytes(documents)} of documents"
            steps.append(watch.step("lazy pull", text))
        with image:
            with self._watched() as watch:
                steps.append(self._read_file(image, path, watch))
            with self._watched() as watch:
                before = watch.moved()
                image.get_remote().unlazy()
                moved = watch.moved() - before
                steps.append(watch.step("unlazy", f"{counted(len(layers), 'layer')} in the store", moved))
            with self._watched() as watch:
                checked = transfer.verify(self._store, registry=self._registry)
                if not checked.good:
                    raise Internal(f"broken after a pull: {checked.problems[0].reason}")
                steps.append(watch.step("verify", f"{counted(checked.blobs, 'digest')} right", checked.nbytes))
            with self._watched() as watch:
                steps.append(self._convert(image, watch))
            if push_to is None:
                steps.append(Step("push", 0, 0.0, "skipped: --push-to names where to push to"))
            else:
                with self._watched() as watch:
                    steps.append(self._push(image, push_to, watch))
        return steps

    def _read_file(self, image: Image, path: str | None, watch: _Watch) -> Step:
        found = _some_file(image) if path is None else path
        if found is None:
            return watch.step("read a file", "skipped: the image has no files")
        size = 0
        with image.open(found) as file:
            while piece := file.read(_PIECE):
                size += len(piece)
        return watch.step("read a file", f"{nbytes(size)} of /{found.lstrip('/')}")

    def _convert(self, image: Image, watch: _Watch) -> Step:
        """Every layer as zstd, beside the ones that there are."""
        wish = RefConfig(Compression("zstd", force=True))
        descriptors = image.get_remote(create_if_needed=True, config=wish).descriptors
        before = total_size(image.manifest.layers)
        text = f"{counted(len(descriptors), 'layer')} of {nbytes(before)} in {nbytes(total_size(descriptors))} of zstd"
        return watch.step("convert", text, before)

    def _push(self, image: Image, push_to: str, watch: _Watch) -> Step:
        report = transfer.push(image, push_to, self._store, registry=self._registry, all_platforms=False)
        done = Counter(blob.how for blob in report.blobs)
        moved = watch.moved()
        if self._embedded is not None and moved:
            raise Internal(f"{moved} bytes of layers moved, though all could be mounted")
        return watch.step("push", ", ".join(f"{counted(n, 'blob')} {how}" for how, n in done.items()))

    @contextmanager
    def _watched(self) -> Iterator[_Watch]:
        watch = _Watch(self._embedded, current_reporter())
        with reporting(watch):
            yield watch


class _Watch:
    """Counts the bytes of layers that move from now on: by the embedded registry's own count, else by progress."""

    def __init__(self, embedded: MemoryRegistry | None, onward: Reporter | None) -> None:
        self._embedded = embedded
        self._onward = onward
        self._lock = threading.Lock()
        self._pieces: dict[tuple[str, str], int] = {}
        self._began = time.monotonic()
        if embedded is not None:
            embedded.reset()

    def __call__(self, event: Event) -> None:
        if event.action not in ("verify", "convert"):
            with self._lock:
                self._pieces[event.digest, event.action] = event.current
        if self._onward is not None:
            self._onward(event)

    def moved(self) -> int:
        if self._embedded is not None:
            counters = self._embedded.counters
            return counters.sent["blob"] + counters.received["upload"]
        with self._lock:
            return sum(self._pieces.values())

    def step(self, name: str, outcome: str, read: int = 0) -> Step:
        return Step(name, self.moved(), time.monotonic() - self._began, outcome, read)


def _some_file(image: Image) -> str | None:
    """A file that most images have, else the first that there is."""
    for path in _LIKELY_FILES:
        try:
            if image.lookup(path).type is EntryType.FILE:
                return path
        except NotFound:
            continue
    return next((node.path for node in image.walk() if node.type is EntryType.FILE), None)


def _show(session: Session, address: str, steps: Sequence[Step]) -> None:
    if session.output.as_json:
        session.output.result({"image": address, "steps": [asdict(step) for step in steps]}, "")
        return
    table = Table(title=address, title_justify="left", box=None, pad_edge=False)
    table.add_column("step")
    table.add_column("layer bytes moved", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("rate", justify="right")
    table.add_column("outcome")
    for step in steps:
        table.add_row(step.name, nbytes(step.moved), f"{step.seconds:.2f}", step.rate, step.outcome)
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    session.output.line("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()))
