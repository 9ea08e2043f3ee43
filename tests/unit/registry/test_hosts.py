"""Which host answers for a name: defaults, `hosts.toml`, mirrors, TLS, proxies."""

from __future__ import annotations

import base64
import random
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from blobtee import tasks
from blobtee.errors import Cancelled, ConnectionFailed, InvalidArgument, InvalidDocument, NotFound
from blobtee.oci import Descriptor, Digest
from blobtee.registry import Credential, Hosts, Settings
from blobtee.registry.proxies import Proxies
from tests.unit.registry.conftest import QUICK, Connect, Serve
from tests.unit.registry.scripted import Asked, Server, Wire, blob_script
from tests.unit.registry.test_documents import DIGEST, HEAD, RAW, manifest

DATA = random.Random(5).randbytes(3_000_000)
DESC = Descriptor("application/octet-stream", Digest.of(DATA), len(DATA))


@pytest.mark.parametrize(
    ("registry", "base"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("ghcr.io", "https://ghcr.io/v2"),
        ("reg.example:5000", "https://reg.example:5000/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost:443", "https://localhost/v2"),
        ("secure.localhost:1", "https://secure.localhost:1/v2"),
        ("plain.example", "http://plain.example/v2"),
    ],
)
def test_the_usual_host(registry: str, base: str) -> None:
    [host] = Hosts((), plain_http=["plain.example"], https=["secure.localhost:1"]).find(registry, "push")
    assert str(host.base) == base
    assert host.namespace == ""


def folder(root: Path, name: str, text: str) -> Path:
    path = root / name / "hosts.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("option", ["config_dirs", "plain_http", "https", "insecure"])
def test_a_single_name_is_not_taken_for_its_letters(option: str) -> None:
    with pytest.raises(InvalidArgument, match="as lists"):
        Hosts(**{option: "reg.example:5000"})


def test_mirrors_come_in_the_order_of_the_file_and_the_server_last(tmp_path: Path) -> None:
    folder(
        tmp_path,
        "docker.io",
        """
        server = "https://registry-1.docker.io"
        [host."https://mirror.example:8443"]
          capabilities = ["pull"]
          ca = "ca.pem"
          client = [["a.pem", "a.key"], "both.pem"]
          [host."https://mirror.example:8443".header]
            x-secret = "hush"
            x-two = ["a", "b"]
        [host."http://10.0.0.1/base/path"]
          override_path = true
          skip_verify = true
          capabilities = ["pull", "resolve"]
        """,
    )
    hosts = Hosts([tmp_path])
    pull = hosts.find("docker.io", "pull")
    assert [str(host.base) for host in pull] == [
        "https://mirror.example:8443/v2",
        "http://10.0.0.1/base/path",
        "https://registry-1.docker.io/v2",
    ]
    assert [host.namespace for host in pull] == ["docker.io", "docker.io", ""]
    first = pull[0]
    assert first.tls.ca == (str(tmp_path / "docker.io" / "ca.pem"),)
    assert first.tls.client[1] == (str(tmp_path / "docker.io" / "both.pem"), "")
    assert first.headers == (("x-secret", "hush"), ("x-two", "a"), ("x-two", "b"))
    assert "hush" not in repr(first)
    assert [host.name for host in hosts.find("docker.io", "resolve")] == ["10.0.0.1", "registry-1.docker.io"]
    assert [host.name for host in hosts.find("docker.io", "push")] == ["registry-1.docker.io"]


@pytest.mark.parametrize("name", ["reg.example_5000_", "reg.example:5000", "_default"])
def test_folder_names(tmp_path: Path, name: str) -> None:
    folder(tmp_path, name, '[host."https://m.example"]')
    hosts = Hosts([tmp_path / "missing", tmp_path]).find("reg.example:5000", "pull")
    assert [host.name for host in hosts] == ["m.example", "reg.example:5000"]


def test_capabilities_are_read_as_containerd_reads_them(tmp_path: Path) -> None:
    text = '[host."https://a.example"]\ncapabilities = []\n[host."https://b.example"]\ncapabilities = ["Pull"]'
    folder(tmp_path, "r.example", text)
    hosts = Hosts([tmp_path])
    assert [host.name for host in hosts.find("r.example", "pull")] == ["a.example", "b.example", "r.example"]
    assert [host.name for host in hosts.find("r.example", "push")] == ["a.example", "r.example"]


def test_a_push_goes_to_the_first_host_that_takes_one(tmp_path: Path, serve: Serve, connect: Connect) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        wire.answer(200 if asked.method == "HEAD" else 201, {"Content-Length": str(DESC.size)})
        wire.drop()

    mirror, place, server = serve(script), serve(script), serve(script)
    folder(
        tmp_path,
        "r.example",
        f'''
        server = "{server.url}"
        [host."{mirror.url}"]
          capabilities = ["pull", "resolve"]
        [host."{place.url}"]
          capabilities = ["pull", "resolve", "push"]
        ''',
    )
    repository = connect(hosts=Hosts([tmp_path])).repository("r.example/a/b")
    assert repository.push(DESC, repository).how == "exists"
    assert [len(s.requests) for s in (mirror, place, server)] == [0, 1, 0]


def test_a_mirror_that_may_not_say_what_a_tag_means_is_not_asked_for_it(
    tmp_path: Path, serve: Serve, connect: Connect
) -> None:
    mirror, server = serve(manifest()), serve(manifest())
    folder(tmp_path, "r.example", f'server = "{server.url}"\n[host."{mirror.url}"]\ncapabilities = ["pull"]')
    repository = connect(hosts=Hosts([tmp_path])).repository("r.example/a/b:c")
    assert repository.resolved().digest == repository.resolve().digest == DIGEST
    assert [r.method for r in server.requests] == ["GET", "HEAD"]
    assert not mirror.requests


def test_dockers_certificate_files_stand_in_for_a_hosts_toml(
    tmp_path: Path, serve: Serve, connect: Connect, authority: trustme.CA
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    server = serve(manifest(), tls=context)
    files = tmp_path / f"127.0.0.1_{server.port}_"
    files.mkdir()
    ours = authority.issue_cert("client@example.org")
    authority.cert_pem.write_to_path(str(files / "ca.crt"))
    ours.cert_chain_pems[0].write_to_path(str(files / "me.cert"))
    ours.private_key_pem.write_to_path(str(files / "me.key"))
    folder(tmp_path, "_default", 'server = "https://never.example"')
    registry = connect(hosts=Hosts([tmp_path], https=[server.host]))
    assert registry.repository(f"{server.host}/a/b:c").document().digest == DIGEST


def test_no_host_with_the_capability_is_said(tmp_path: Path) -> None:
    folder(tmp_path, "r.example", 'server = "https://r.example"\ncapabilities = ["pull"]')
    with pytest.raises(InvalidArgument, match="may push"):
        Hosts([tmp_path]).find("r.example", "push")


@pytest.mark.parametrize(
    "text",
    [
        "server =",
        "server = 5",
        "host = 5",
        '[host."ftp://x"]',
        '[host."https://x"]\ncapabilities = ["fly"]',
        '[host."https://x"]\ncapabilities = "pull"',
        '[host."https://x"]\nskip_verify = "yes"',
        '[host."https://x"]\nca = 5',
        '[host."https://x"]\nclient = [["a", "b", "c"]]',
        '[host."https://x"]\n[host."https://x".header]\nx = "a\\nb"',
        '[host."https://x"]\n[host."https://x".header]\n"bad name" = "a"',
        '[host."https://u:s3cr3t@x"]',
        "\x00",
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = folder(tmp_path, "r.example", text)
    with pytest.raises(InvalidDocument) as caught:
        Hosts([tmp_path]).find("r.example", "pull")
    assert str(path) in str(caught.value)


def mirrored(tmp_path: Path, server: Server, *mirrors: str, more: str = "") -> Hosts:
    tables = "".join(f'[host."{mirror}"]\n{more}\n' for mirror in mirrors)
    folder(tmp_path, "reg.example", f'server = "{server.url}"\n{tables}')
    return Hosts([tmp_path])


def test_a_mirror_is_asked_with_the_namespace_and_its_headers(tmp_path: Path, serve: Serve, connect: Connect) -> None:
    mirror, server = serve(manifest()), serve(manifest())
    hosts = mirrored(tmp_path, server, mirror.url, more=f'[host."{mirror.url}".header]\nx-key = "hush"')
    connect(hosts=hosts).repository("reg.example/team/app").document()
    assert server.requests == []
    assert mirror.requests[0].query == {"ns": ["reg.example"]}
    assert mirror.requests[0].headers["x-key"] == "hush"


@pytest.mark.parametrize("trouble", ["gone", "404", "500", "401", "wrong bytes", "garbage"])
def test_whatever_a_mirror_does_the_server_is_next(
    tmp_path: Path, serve: Serve, connect: Connect, trouble: str
) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if trouble == "garbage":
            wire.send(b"\0\0\0")
            wire.drop()
        elif trouble == "wrong bytes":
            wire.answer(200, HEAD, RAW + b" ")
        else:
            wire.answer(int(trouble))

    server = serve(manifest())
    if trouble == "gone":
        with Server(script) as mirror:
            pass
    else:
        mirror = serve(script)
    hosts = mirrored(tmp_path, server, mirror.url)
    assert connect(hosts=hosts).repository("reg.example/team/app").document().digest == DIGEST


def test_a_blob_falls_over_to_the_next_host_and_goes_on_mid_body(
    tmp_path: Path, serve: Serve, connect: Connect
) -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if asked.range:
            wire.answer(404)
        else:
            wire.answer(200, {"Content-Length": str(len(DATA))}, DATA[:1_000_000])
            wire.drop()

    mirror, server = serve(script), serve(blob_script(DATA))
    hosts = mirrored(tmp_path, server, mirror.url)
    with connect(hosts=hosts).repository("reg.example/team/app").reader_at(DESC) as blob, blob.open() as file:
        assert file.read() == DATA
    assert [r.range for r in server.requests] == [(1_000_000, len(DATA))]


@pytest.mark.parametrize("status", [404, 500])
def test_a_blob_that_a_mirror_does_not_have_is_looked_for_at_the_server(
    tmp_path: Path, serve: Serve, connect: Connect, status: int
) -> None:
    mirror = serve(lambda asked, wire: wire.answer(status))
    server = serve(lambda asked, wire: wire.answer(200 if DESC.digest in asked.path else 404, {"Content-Length": "7"}))
    repository = connect(hosts=mirrored(tmp_path, server, mirror.url)).repository("reg.example/team/app")
    assert repository.stat(DESC.digest) == 7
    assert repository.stat(DIGEST) is None


def test_a_client_with_other_settings_has_the_same_hosts_and_connections_of_its_own(
    tmp_path: Path, serve: Serve, connect: Connect
) -> None:
    mirror = serve(lambda asked, wire: wire.answer(200, {"Content-Length": "7"}))
    server = serve(lambda asked, wire: wire.answer(404))
    first = connect(hosts=mirrored(tmp_path, server, mirror.url))
    with first.with_settings(replace(QUICK, attempts=1)) as second:
        first.close()
        assert second.repository("reg.example/team/app").stat(DESC.digest) == 7
        assert second.settings.attempts == 1


def test_the_last_hosts_error_is_the_one_told(tmp_path: Path, serve: Serve, connect: Connect) -> None:
    mirror = serve(lambda asked, wire: wire.answer(500))
    server = serve(lambda asked, wire: wire.answer(404))
    repository = connect(hosts=mirrored(tmp_path, server, mirror.url)).repository("reg.example/team/app")
    with pytest.raises(NotFound) as caught:
        repository.document()
    assert server.host in str(caught.value)


def test_a_mirror_gets_its_own_credentials_only(tmp_path: Path, serve: Serve, connect: Connect) -> None:
    asked_for: list[str] = []

    class Asking:
        def get(self, host: str, repository: str) -> Credential | None:
            asked_for.append(host)
            return None

    mirror = serve(lambda asked, wire: wire.answer(401, {"WWW-Authenticate": "Basic"}))
    server = serve(manifest())
    registry = connect(hosts=mirrored(tmp_path, server, mirror.url), credentials=Asking())
    registry.repository("reg.example/team/app").document()
    assert asked_for == [mirror.host]


# TLS


def secure(serve: Serve, server_tls: ssl.SSLContext) -> tuple[Server, Hosts]:
    server = serve(blob_script(DATA), tls=server_tls)
    return server, Hosts((), https=[server.host])


@pytest.mark.parametrize("takeover", [1, 1 << 40])
def test_tls_with_an_authority_from_the_environment(
    serve: Serve, connect: Connect, server_tls: ssl.SSLContext, ca_file: str, takeover: int
) -> None:
    server, hosts = secure(serve, server_tls)
    registry = connect(hosts=hosts, environ={"SSL_CERT_FILE": ca_file}, settings=Settings(takeover=takeover))
    with registry.repository(f"{server.host}/a/b").reader_at(DESC) as blob, blob.open(7) as file:
        assert file.read() == DATA[7:]


def test_an_untrusted_certificate_is_told_with_what_to_do(
    serve: Serve, connect: Connect, server_tls: ssl.SSLContext
) -> None:
    server, hosts = secure(serve, server_tls)
    with pytest.raises(ConnectionFailed, match="SSL_CERT_FILE") as caught:
        connect(hosts=hosts).repository(f"{server.host}/a/b").resolve()
    assert "not trusted" in str(caught.value)


def test_a_ca_file_that_is_not_there_is_named(serve: Serve, connect: Connect, server_tls: ssl.SSLContext) -> None:
    server, hosts = secure(serve, server_tls)
    with pytest.raises(InvalidArgument, match=r"/nowhere/ca\.pem"):
        connect(hosts=hosts, environ={"SSL_CERT_FILE": "/nowhere/ca.pem"}).repository(f"{server.host}/a/b").resolve()


def test_hosts_toml_gives_authority_client_certificate_or_no_check(
    tmp_path: Path, serve: Serve, connect: Connect, authority: trustme.CA, ca_file: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    server = serve(manifest(), tls=context)
    ours = authority.issue_cert("client@example.org")
    ours.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "me.pem"))
    for trust in (f'ca = "{ca_file}"', "skip_verify = true"):
        folder(tmp_path, "reg.example", f'server = "{server.url}"\n{trust}\nclient = "{tmp_path}/me.pem"')
        document = connect(hosts=Hosts([tmp_path])).repository("reg.example/a/b:c").document()
        assert document.digest == DIGEST
    folder(tmp_path, "reg.example", f'server = "{server.url}"\nca = "{ca_file}"')
    with pytest.raises(ConnectionFailed):
        connect(hosts=Hosts([tmp_path])).repository("reg.example/a/b:c").document()
    folder(tmp_path, "reg.example", f'server = "{server.url}"\nca = "missing.pem"')
    with pytest.raises(InvalidArgument, match=r"missing\.pem"):
        connect(hosts=Hosts([tmp_path])).repository("reg.example/a/b:c").document()


def test_plain_http_where_tls_was_expected_is_explained(serve: Serve, connect: Connect) -> None:
    server = serve(manifest())
    with pytest.raises(ConnectionFailed, match=r"hosts\.toml"):
        # With the usual patience: a busy machine may take its time over a handshake.
        connect(hosts=Hosts((), https=[server.host]), settings=Settings()).repository(f"{server.host}/a/b").resolve()


def test_a_tls_handshake_that_never_ends_is_cancelled_at_once(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        registry = connect(hosts=Hosts((), https=[host]), settings=Settings())
        with tasks.scope() as scope:
            threading.Timer(0.2, scope.cancel).start()
            started = time.monotonic()
            with pytest.raises(Cancelled):
                registry.repository(f"{host}/a/b").resolve()
        assert time.monotonic() - started < 15, "it may take 30 s"


def test_a_connection_that_never_opens_is_cancelled_at_once_and_times_out(connect: Connect) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        # A full backlog: further connections hang in SYN.
        fill = [socket.socket() for _ in range(4)]
        try:
            for sock in fill:
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
            registry = connect(settings=Settings(connect=20))
            with tasks.scope() as scope:
                threading.Timer(0.3, scope.cancel).start()
                started = time.monotonic()
                with pytest.raises(Cancelled):
                    registry.repository(f"127.0.0.1:{port}/a/b").resolve()
            assert time.monotonic() - started < 10
            with pytest.raises(ConnectionFailed, match="timed out"):
                connect(settings=Settings(connect=0.3)).repository(f"127.0.0.1:{port}/a/b").resolve()
        finally:
            for sock in fill:
                sock.close()


def test_an_unknown_name_is_told(connect: Connect) -> None:
    with pytest.raises(ConnectionFailed, match=r"registry\.invalid"):
        connect(settings=Settings(connect=5)).repository("registry.invalid/a/b").resolve()


# Proxies


@pytest.mark.parametrize(
    ("exceptions", "host", "port", "proxied"),
    [
        ("", "r.example", 443, True),
        ("", "localhost", 443, False),
        ("", "127.1.2.3", 80, False),
        ("*", "r.example", 443, False),
        ("r.example", "r.example", 443, False),
        ("r.example", "sub.r.example", 443, False),
        ("r.example", "other.example", 443, True),
        ("r.example", "rr.example", 443, True),
        (".r.example", "r.example", 443, True),
        (".r.example", "sub.r.example", 443, False),
        ("r.example:5000", "r.example", 5000, False),
        ("r.example:5000", "r.example", 443, True),
        ("a, 10.0.0.0/8 ,b", "10.1.2.3", 443, False),
        ("10.0.0.0/8", "11.1.2.3", 443, True),
        ("10.0.0.1", "10.0.0.1", 443, False),
        ("[::2]:443", "::2", 443, False),
        ("fe80::/10", "fe80::1", 443, False),
    ],
)
def test_no_proxy(exceptions: str, host: str, port: int, proxied: bool) -> None:
    proxies = Proxies.from_environment(
        {"https_proxy": "p.example:1", "HTTP_PROXY": "p.example:1", "NO_PROXY": exceptions}
    )
    assert bool(proxies.find("https", host, port)) == proxied


def test_a_proxy_of_another_kind_is_refused_and_none_shows_its_password() -> None:
    with pytest.raises(InvalidArgument):
        Proxies.from_environment({"HTTPS_PROXY": "socks5://x"})
    assert "s3cr3t" not in repr(Proxies.from_environment({"HTTPS_PROXY": "http://u:s3cr3t@x"}))


@pytest.mark.parametrize(
    "proxy", ["http://ann:s3cr3t@[::1", "http://ann:s3cr3t@x:99999", "http://", "ann:s3cr3t@x/\x01"]
)
def test_a_proxy_that_is_no_url_is_told_without_its_password(connect: Connect, proxy: str) -> None:
    registry = connect(environ={"https_proxy": proxy})
    with pytest.raises(InvalidArgument, match="HTTPS_PROXY") as caught:
        registry.repository("r.example/a/b").resolve()
    assert "s3cr3t" not in str(caught.value)


def test_a_proxy_takes_a_password_of_any_letters(serve: Serve, connect: Connect) -> None:
    proxy = serve(manifest())
    environ = {"http_proxy": f"http://änn:p%40ß@{proxy.host}"}
    connect(hosts=Hosts((), plain_http=["r.example"]), environ=environ).repository("r.example/a/b:c").document()
    sent = proxy.requests[0].headers["proxy-authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent).decode() == "änn:p@ß"


def test_plain_requests_go_through_the_proxy(serve: Serve, connect: Connect) -> None:
    proxy = serve(manifest())
    registry = connect(hosts=Hosts((), plain_http=["r.example"]), environ={"http_proxy": f"http://u:pw@{proxy.host}"})
    assert registry.repository("r.example/a/b:c").document().digest == DIGEST
    [asked] = proxy.requests
    assert asked.target == "http://r.example/v2/a/b/manifests/c"
    assert asked.headers["proxy-authorization"].startswith("Basic ")


def test_tls_requests_tunnel_through_the_proxy(
    serve: Serve, connect: Connect, server_tls: ssl.SSLContext, ca_file: str
) -> None:
    server, _ = secure(serve, server_tls)

    def tunnel(asked: Asked, wire: Wire) -> None:
        assert (asked.method, asked.target) == ("CONNECT", f"localhost.example:{server.port}")
        wire.answer(502, {}, b"no")

    proxy = serve(tunnel)
    registry = connect(environ={"https_proxy": proxy.url, "SSL_CERT_FILE": ca_file})
    with pytest.raises(ConnectionFailed, match="proxy") as caught:
        registry.repository(f"localhost.example:{server.port}/a/b").resolve()
    assert proxy.host in str(caught.value)


@pytest.mark.parametrize("takeover", [1 << 10, 1 << 30])
def test_a_tunnel_carries_documents_and_large_bodies(
    serve: Serve, connect: Connect, authority: trustme.CA, ca_file: str, takeover: int
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("r.example").configure_cert(tls)
    data = random.Random(1).randbytes(3 << 20)
    documents, blob = manifest(), blob_script(data)
    server = serve(lambda asked, wire: (blob if "/blobs/" in asked.target else documents)(asked, wire), tls=tls)

    def tunnel(asked: Asked, wire: Wire) -> None:
        assert asked.method == "CONNECT"
        wire.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        with socket.create_connection(("127.0.0.1", server.port)) as far:
            up = threading.Thread(target=pump, args=(wire.sock, far))
            up.start()
            pump(far, wire.sock)
            up.join()
        wire.drop()

    proxy = serve(tunnel)
    registry = connect(
        environ={"https_proxy": proxy.url.replace("//", "//ann:pw@"), "SSL_CERT_FILE": ca_file},
        settings=replace(QUICK, takeover=takeover),
    )
    repository = registry.repository("r.example/a/b:c")
    desc = Descriptor("x", Digest.of(data), len(data))
    for _ in range(2):
        assert repository.document().digest == DIGEST
        with repository.reader_at(desc) as reader, reader.open() as file:
            assert file.readall() == data
    registry.close()  # Before the proxy, which would wait for the tunnels that are kept open.
    assert {asked.target for asked in proxy.requests} == {"r.example:443"}
    assert all("proxy-authorization" in asked.headers for asked in proxy.requests)
    assert all("proxy-authorization" not in asked.headers for asked in server.requests)
    assert len(proxy.requests) == (2 if takeover == 1 << 10 else 1)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
