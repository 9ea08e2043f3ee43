"""Nobody is told of a blob whose name may still go: not while it is brought, and not of one left half way."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from blobtee.content import LocalStore, arrivals
from blobtee.content.files import sync_directory
from blobtee.errors import AlreadyExists, NotFound, StorageError
from blobtee.oci import Digest
from tests.conformance.blobs import put

REPOSITORY = Path(__file__).parents[3]
DATA = b"some bytes"
DIGEST = Digest.of(DATA)
PATIENCE = 120


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> Iterator[LocalStore]:
    with LocalStore(root) as store:
        yield store


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def path(store: LocalStore) -> Path:
    return Path(store.path(DIGEST))


def rights(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


# Each says whether the blob is there.


def has(store: LocalStore) -> bool:
    return store.has(DIGEST)


def info(store: LocalStore) -> bool:
    try:
        return store.info(DIGEST).size == len(DATA)
    except NotFound:
        return False


def sizes(store: LocalStore) -> bool:
    return store.sizes([DIGEST]) == {DIGEST: len(DATA)}


def opening(store: LocalStore) -> bool:
    try:
        store.writer("another", expected=DIGEST).close()
    except AlreadyExists:
        return True
    store.abort("another")
    return False


def committing(store: LocalStore) -> bool:
    """Of one that comes now, too: what matters is that the other was not told of before."""
    try:
        put(store, DATA, ref="another")
    except AlreadyExists:
        return True
    store.delete(DIGEST)
    return False


def changing(store: LocalStore) -> bool:
    try:
        store.update(DIGEST, {"a": "1"})
    except NotFound:
        return False
    return True


LOOKS = (has, info, sizes, opening, committing, changing)


class Held:
    """The sync of names that come: it waits until it is let go, or fails then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self._end = threading.Event()
        self._failure: OSError | None = None
        self._sync = sync_directory
        self._first = [True]
        monkeypatch.setattr(arrivals, "sync_directory", self._hold)

    def _hold(self, directory: str) -> None:
        if not (self._first and self._first.pop()):
            return self._sync(directory)
        self.begun.set()
        assert self._end.wait(PATIENCE)
        if self._failure is not None:
            raise self._failure
        return self._sync(directory)

    def succeed(self) -> None:
        self._end.set()

    def fail(self) -> None:
        self._failure = OSError(errno.EIO, "Input/output error")
        self._end.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.succeed()


def ends_well(commit: Future[Any], held: Held, well: bool) -> None:
    if well:
        held.succeed()
        assert commit.result(PATIENCE).size == len(DATA)
    else:
        held.fail()
        with pytest.raises(StorageError):
            commit.result(PATIENCE)


@pytest.mark.parametrize("well", [True, False])
@pytest.mark.parametrize("look", LOOKS)
def test_another_thread_waits_for_the_name(
    store: LocalStore, pool: ThreadPoolExecutor, held: Held, look: Callable[[LocalStore], bool], well: bool
) -> None:
    commit = pool.submit(put, store, DATA)
    assert held.begun.wait(PATIENCE)
    assert path(store).exists()
    answer = pool.submit(look, store)
    with pytest.raises(NotYet):
        answer.result(0.2)
    ends_well(commit, held, well)
    assert answer.result(PATIENCE) is well
    assert has(store) is well


@pytest.mark.parametrize("well", [True, False])
@pytest.mark.parametrize("look", LOOKS)
def test_another_process_waits_for_the_name(
    store: LocalStore, pool: ThreadPoolExecutor, held: Held, look: Callable[[LocalStore], bool], well: bool
) -> None:
    code = (
        "import sys\n"
        "from blobtee.content import LocalStore\n"
        "from tests.unit.content import test_settling\n"
        "with LocalStore(sys.argv[1]) as store:\n"
        "    print('open', flush=True)\n"
        "    print(getattr(test_settling, sys.argv[2])(store), flush=True)\n"
    )
    commit = pool.submit(put, store, DATA)
    assert held.begun.wait(PATIENCE)
    command = [sys.executable, "-c", code, str(store.root), look.__name__]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        answer = pool.submit(process.stdout.readline)
        with pytest.raises(NotYet):
            answer.result(0.3)
        ends_well(commit, held, well)
        assert answer.result(PATIENCE) == f"{well}\n"


@pytest.mark.parametrize("well", [True, False])
def test_a_linked_file_that_nobody_may_write_is_no_blob_before_its_name_is_durable(
    store: LocalStore, pool: ThreadPoolExecutor, held: Held, tmp_path: Path, well: bool
) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(DATA)
    theirs.chmod(0o444)
    commit = pool.submit(store.link, theirs, DIGEST)
    assert held.begun.wait(PATIENCE)
    answer = pool.submit(has, store)
    with pytest.raises(NotYet):
        answer.result(0.2)
    ends_well(commit, held, well)
    assert answer.result(PATIENCE) is well
    assert rights(theirs) == 0o444


@pytest.mark.parametrize("well", [True, False])
@pytest.mark.parametrize("look", [has, info, sizes, opening])
def test_who_is_in_a_transaction_waits_for_nobody_and_syncs_the_name_himself(
    store: LocalStore,
    pool: ThreadPoolExecutor,
    held: Held,
    syncs: list[str],
    look: Callable[[LocalStore], bool],
    well: bool,
) -> None:
    commit = pool.submit(put, store, DATA)
    assert held.begun.wait(PATIENCE)

    def inside() -> bool:
        with store.metadata.transaction():
            syncs.clear()
            answer = look(store)
            assert syncs[0] == "sha256"
            if not well:
                held.fail()  # who brings it waits for this transaction now, to undo its row
                with pytest.raises(NotYet):
                    commit.result(0.2)
            return answer

    assert pool.submit(inside).result(PATIENCE)
    ends_well(commit, held, well)
    assert has(store) is well


# ---- what nobody brings any more -------------------------------------------------------------------------------------


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The last part of the path of what is synced."""
    recorded: list[str] = []
    sync = os.fsync

    def recording(fd: int) -> None:
        recorded.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        sync(fd)

    monkeypatch.setattr(os, "fsync", recording)
    return recorded


def without_metadata(syncs: list[str]) -> list[str]:
    return [name for name in syncs if not name.startswith("blobtee.db")]


def killed(root: Path) -> None:
    """Somebody is killed when the blob has its name, and that is not synced."""
    code = (
        "import os, signal, sys\n"
        "from blobtee.content import LocalStore, arrivals\n"
        "from tests.unit.content.test_settling import DATA\n"
        "from tests.conformance.blobs import put\n"
        "arrivals.sync_directory = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with LocalStore(sys.argv[1]) as store:\n"
        "    put(store, DATA, {'a': '1'})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], cwd=REPOSITORY, check=False, timeout=PATIENCE)
    assert done.returncode == -9


def evicting(store: LocalStore) -> bool:
    """Asks what others ask who may take it: under its lock, and in a transaction."""
    asked = []

    def may_go() -> Any:
        asked.append(store.info(DIGEST).labels)
        return nullcontext(False)

    assert not store.evict(DIGEST, may_go)
    return asked == [{"a": "1"}]


@pytest.mark.parametrize(
    ("look", "inside"),
    [*((look, False) for look in (*LOOKS, evicting)), *((look, True) for look in (has, info, sizes, opening))],
)
def test_what_a_killed_process_left_is_durable_for_who_sees_it_first(
    root: Path, syncs: list[str], look: Callable[[LocalStore], bool], inside: bool
) -> None:
    killed(root)
    with LocalStore(root) as store:
        assert rights(path(store)) & 0o200
        syncs.clear()
        with store.metadata.transaction() if inside else nullcontext():
            assert look(store)
        assert without_metadata(syncs)[-2:] == [DIGEST.hex, "sha256"], "the file, and then its name"
        assert rights(path(store)) == 0o444
        syncs.clear()
        assert store.info(DIGEST).labels["a"] == "1"
        assert all(again(store) for again in (has, info, sizes, opening))
        assert syncs == []


def test_what_was_put_there_by_hand_is_synced_once_and_no_more_open_than_before(
    store: LocalStore, syncs: list[str]
) -> None:
    path(store).write_bytes(DATA)
    path(store).chmod(0o640)
    syncs.clear()
    assert has(store)
    assert syncs == [DIGEST.hex, "sha256"]
    assert rights(path(store)) == 0o440
    assert info(store)
    assert without_metadata(syncs) == [DIGEST.hex, "sha256"]


@pytest.mark.parametrize(("given", "wanted"), [(0o600, ["LINK", "sha256"]), (0o444, ["sha256"])])
def test_a_file_that_is_linked_is_synced_unless_it_was_by_who_finished_it(
    store: LocalStore, syncs: list[str], tmp_path: Path, given: int, wanted: list[str]
) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(DATA)
    theirs.chmod(given)
    syncs.clear()
    store.link(theirs, DIGEST)
    assert ["LINK" if name.startswith(".link-") else name for name in without_metadata(syncs)] == wanted
    assert rights(theirs) == 0o444


@pytest.mark.parametrize("how", ["refused", "ignored", "linked", "symlink"])
def test_where_rights_say_nothing_it_is_synced_once(
    store: LocalStore, syncs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def no_rights(*_: object) -> None:
        if how == "refused":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    theirs = tmp_path / "theirs"
    if how in ("refused", "ignored"):
        monkeypatch.setattr(arrivals, "settle_files", lambda *_: None)
        monkeypatch.setattr(os, "fchmod", no_rights)
        put(store, DATA)
    else:
        theirs.write_bytes(DATA)
        (os.link if how == "linked" else os.symlink)(theirs, path(store))
    syncs.clear()
    for look in (has, info, sizes, opening, has):
        assert look(store)
    assert without_metadata(syncs) == ["sha256"] if how == "symlink" else [DIGEST.hex, "sha256"]
    assert path(store).stat().st_mode & 0o200
    # Another one by the same name is another one.
    theirs.unlink(missing_ok=True)
    path(store).unlink()
    path(store).write_bytes(DATA)
    syncs.clear()
    assert has(store)
    assert "sha256" in syncs


def test_what_cannot_be_made_durable_is_told_to_nobody(
    store: LocalStore, syncs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path(store).write_bytes(DATA)

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        for look in (has, info, sizes, opening):
            with pytest.raises(StorageError):
                look(store)
            with pytest.raises(StorageError), store.metadata.transaction():
                look(store)
        with pytest.raises(StorageError):
            changing(store)
    assert rights(path(store)) & 0o200
    syncs.clear()
    assert has(store)
    assert "sha256" in syncs


def test_a_store_that_may_only_be_read_answers(
    tmp_path: Path, syncs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    killed(root)
    monkeypatch.setattr(os, "access", lambda *_, **named: not named)
    with LocalStore(root) as store:
        assert store.read_only
        assert all(look(store) for look in (has, info, sizes))
        assert syncs == []
        assert rights(path(store)) & 0o200
