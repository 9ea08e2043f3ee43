"""A server starts whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.errors import ResourceExhausted
from blobtee.plugin import server
from blobtee.plugin.lazy import LazyBlobs
from blobtee.plugin.server import Listen, Server
from blobtee.plugin.serving import Serving
from blobtee.plugin.sockets import listens
from blobtee.plugin.sweeping import Sweeper


def test_without_a_thread_for_the_sweep_nothing_is_served(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(sweeper: Sweeper) -> None:
        raise RuntimeError("can't start new thread")

    path = tmp_path / "s.sock"
    with monkeypatch.context() as patch:
        patch.setattr(Sweeper, "start", refuse)
        refused = Server(store, [Listen("one", path)])
        with pytest.raises(ResourceExhausted, match="no thread"):
            refused.start()
    assert not path.exists()
    with Server(store, [Listen("one", path)]):
        assert listens(path)


def test_the_first_error_of_a_start_is_told_whatever_its_end_meets(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Server(store, [Listen("one", tmp_path / "s.sock")])

    def first(serving: Serving) -> None:
        raise AttributeError("the C core lacks something")

    def second(lazy: LazyBlobs) -> None:
        raise RuntimeError("cannot join thread before it is started")

    with monkeypatch.context() as patch:
        patch.setattr(Serving, "start", first)
        patch.setattr(LazyBlobs, "close", second)
        with pytest.raises(AttributeError, match="the C core"):
            refused.start()
    assert "could not be ended" in caplog.text
    refused.stop(0)


@pytest.mark.parametrize(
    ("content", "where", "limit"),
    [
        ("0::/pod\n", "pod/pids.max", 500),
        ("12:cpu:/x\n8:pids:/pod\n0::/\n", "pids/pod/pids.max", 500),
        ("0::/pod\n", "pod/other", None),
    ],
)
def test_streams_stay_within_the_threads_of_a_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, where: str, limit: int | None
) -> None:
    unlimited = server._streams_that_fit()
    (tmp_path / where).parent.mkdir(parents=True)
    (tmp_path / where).write_text("500\n")
    read = Path.read_text

    def read_text(path: Path) -> str:
        return content if str(path) == "/proc/self/cgroup" else read(path)

    monkeypatch.setattr(server, "_CGROUPS", tmp_path)
    monkeypatch.setattr(Path, "read_text", read_text)
    if limit is None:
        assert server._streams_that_fit() >= unlimited
    else:
        assert server._streams_that_fit() == limit - server._THREADS_OF_OURS
