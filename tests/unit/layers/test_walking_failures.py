"""The walking differ where trees cannot be read, change while they are read, or are more than it can take."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blobtee.errors import (
    BlobteeError,
    Cancelled,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from blobtee.layers import source, write_changes
from blobtee.layers.blocks import PIECE
from blobtee.tasks import scope
from tests.unit.layers.tars import as_nobody
from tests.unit.layers.trees import at, changes, contents, descend, needs_root, paths


@needs_root
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_may_not_be_read_is_named(kind: str, reachable: tuple[Path, Path]) -> None:
    lower, upper = reachable
    secret = upper / "a/secret"
    secret.touch() if kind == "file" else secret.mkdir()
    os.chmod(secret, 0)
    with as_nobody():
        for below in (None, lower):
            with pytest.raises(PermissionDenied, match="a/secret"):
                changes(below, upper)


@needs_root
def test_what_anybody_may_read_is_written_without_root(reachable: tuple[Path, Path]) -> None:
    lower, upper = reachable
    os.remove(upper / "b/file")
    (upper / "new").touch()
    (upper / "s").symlink_to("x")
    with as_nobody():
        found = paths(changes(lower, upper))
    assert found == ["b", "b/.wh.file", "new", "s"]


def test_missing_trees_are_not_found(lower: Path) -> None:
    for below, above in ((None, lower / "no"), (lower / "no", lower), (lower, lower / "file")):
        with pytest.raises(NotFound, match=r"no|file"):
            changes(below, above)
    with pytest.raises(InvalidArgument):
        changes(None, "nul\0")


def test_a_root_may_be_a_link_but_nothing_in_it_is_followed(lower: Path, upper: Path) -> None:
    link = upper.parent / "link"
    link.symlink_to("upper")
    (upper / "out").symlink_to("/")
    (upper / "loop").symlink_to("loop")
    assert paths(changes(lower, link)) == ["loop", "out"]


@pytest.fixture
def meddle(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """Have something done by somebody else, once, when a function of `os` is called on a name or descriptor."""

    def prepare(function: str, act: Callable[[], object]) -> None:
        real = getattr(os, function)
        pending = [act]

        def call(*args: object, **keywords: object) -> object:
            if pending:
                pending.pop()()
            return real(*args, **keywords)

        monkeypatch.setattr(os, function, call)

    return prepare


Meddle = Callable[[str, Callable[[], object]], None]


@pytest.mark.parametrize("size", [100, 3 * PIECE])
@pytest.mark.parametrize("to", [0, 50, 101, 4 * PIECE])
def test_a_file_that_changes_its_size_while_read_is_an_error(
    size: int, to: int, tmp_path: Path, meddle: Meddle
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * size)
    meddle("read" if size == 100 else "preadv", lambda: os.truncate(file, to))
    with pytest.raises(FailedPrecondition, match="file changed while"):
        changes(None, tmp_path)


def test_a_large_file_written_to_while_read_is_an_error(tmp_path: Path, meddle: Meddle) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(3 * PIECE))
    at(file, 5)

    def write() -> None:
        with file.open("r+b") as opened:
            opened.write(b"x")

    meddle("preadv", write)
    with pytest.raises(FailedPrecondition, match="file changed while"):
        changes(None, tmp_path)


def test_short_reads_are_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, n: real(fd, min(n, 3)))
    assert list(contents(changes(None, tmp_path))) == [("file", b"0123456789")]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_do_not_tell_holes_are_read_whole(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(PIECE)
        file.seek(PIECE // 2)
        file.write(b"data")

    def refuse(*_: object) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "lseek", refuse)
    ((_, data),) = contents(changes(None, tmp_path))
    assert data == bytes(PIECE // 2) + b"data" + bytes(PIECE // 2 - 4)


def test_files_that_do_not_know_their_size_are_refused() -> None:
    # The kernel's own: of no size, yet with content, on a file system without attributes.
    with pytest.raises(FailedPrecondition, match="changed while"):
        changes(None, "/proc/sys/fs/inotify")


@needs_root
def test_without_proc_it_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("x")
    code = "import sys; from blobtee.layers import write_changes; write_changes(None, sys.argv[1], lambda piece: None)"
    command = 'mount -t tmpfs none /proc && exec "$@"'
    failed = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, "sh", sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
    )
    assert "FailedPrecondition: cannot read extended attributes without /proc" in failed.stderr


@pytest.mark.parametrize("into", ["nothing", "symlink", "directory", "fifo"])
def test_a_file_replaced_while_it_is_listed_is_never_followed(into: str, tmp_path: Path, meddle: Meddle) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").touch()
    (tmp_path / "secret").write_bytes(b"secret")

    def replace() -> None:
        os.remove(root / "file")
        if into == "symlink":
            (root / "file").symlink_to("../secret")
        elif into == "directory":
            (root / "file").mkdir()
        elif into == "fifo":
            os.mkfifo(root / "file")

    real = source.open_file

    def open_file(*args: object) -> object:
        replace()
        return real(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "open_file", open_file)
        with pytest.raises(FailedPrecondition, match="file changed while"):
            changes(None, root)


def test_a_directory_replaced_by_a_link_leads_nowhere(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").touch()
    real = source.status_at

    def status_at(parent: int, name: bytes, path: bytes) -> os.stat_result:
        status = real(parent, name, path)
        os.rmdir(root / "d")
        (root / "d").symlink_to("../secret")
        return status

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "status_at", status_at)
        with pytest.raises(FailedPrecondition, match="d changed while"):
            changes(None, root)


def test_what_write_raises_passes_through_and_leaves_nothing_open(
    upper: Path, count_descriptors: Callable[[], int]
) -> None:
    (upper / "large").write_bytes(bytes(PIECE))

    def full(_: object) -> None:
        raise OSError(28, "not ours")

    before = count_descriptors()
    with pytest.raises(OSError, match="not ours") as caught:
        write_changes(None, upper, full)
    assert not isinstance(caught.value, BlobteeError)
    assert count_descriptors() == before


def test_it_can_be_cancelled(upper: Path) -> None:
    for i in range(600):
        (upper / f"f{i}").touch()
    for below in (None, upper):
        with scope() as cancellation:
            cancellation.cancel()
            with pytest.raises(Cancelled):
                changes(below, upper)


FEW = """
import resource, sys
from blobtee.errors import ResourceExhausted
from blobtee.layers import write_changes
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
try:
    write_changes(None, sys.argv[1], lambda piece: None)
except ResourceExhausted as error:
    print(error)
"""


def test_few_descriptors_are_no_crash(tmp_path: Path) -> None:
    # A process of its own: the limit is on the numbers, not on how many are open, and holds for all threads.
    descend(tmp_path, "d", 60)
    done = subprocess.run([sys.executable, "-c", FEW, tmp_path], capture_output=True, text=True)
    assert not done.stderr
    assert "open files" in done.stdout
