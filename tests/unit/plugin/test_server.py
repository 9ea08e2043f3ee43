"""A server starts whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobtee.content import LocalStore
from blobtee.plugin.server import Listen, Server
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
        server = Server(store, [Listen("one", path)])
        with pytest.raises(RuntimeError):
            server.start()
    assert not path.exists()
    with Server(store, [Listen("one", path)]):
        assert listens(path)
