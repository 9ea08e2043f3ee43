from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import trustme

from blobtee.registry import Credentials, Hosts, NoCredentials, Registry, Settings
from tests.unit.registry.scripted import Script, Server

QUICK = Settings(
    connect=2.0,
    answer=2.0,
    commit=2.0,
    stall=0.5,
    document=2.0,
    patience=1.5,
    attempts=3,
    backoff=0.01,
    takeover=64 << 10,
)

Serve = Callable[..., Server]
Connect = Callable[..., Registry]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(stack: ExitStack) -> Serve:
    """Starts a scripted server, stopped at the end of the test."""

    def start(script: Script, *, tls: ssl.SSLContext | None = None) -> Server:
        return stack.enter_context(Server(script, tls=tls))

    return start


@pytest.fixture
def connect(stack: ExitStack) -> Connect:
    """Makes a client that reads no file of this machine, closed at the end of the test."""

    def make(
        *,
        hosts: Hosts | None = None,
        credentials: Credentials | None = None,
        settings: Settings = QUICK,
        environ: dict[str, str] | None = None,
    ) -> Registry:
        return stack.enter_context(
            Registry(
                hosts=hosts or Hosts(()),
                credentials=credentials or NoCredentials(),
                settings=settings,
                environ=environ or {},
            )
        )

    return make


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)
