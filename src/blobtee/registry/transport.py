"""The one seam to the HTTP library: a request goes out, an `Answer` comes back.

HTTP/1.1 only. Nothing here follows redirects, signs in or tries again: that is `session.py`'s.
"""

from __future__ import annotations

import contextvars
import logging
import os
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlencode

import httpcore
import httpx

from blobtee import tasks
from blobtee._version import __version__
from blobtee.errors import Closed, ConnectionFailed, InvalidArgument, ProtocolViolation, TooLarge
from blobtee.registry.network import SLOWEST, Backend, Stream, awaiting_answer
from blobtee.registry.proxies import Proxies
from blobtee.registry.settings import Settings

USER_AGENT = f"blobtee/{__version__}"

_MAX_URL = 32 << 10

_sending: contextvars.ContextVar[bool] = contextvars.ContextVar("blobtee_http_sending", default=False)


def _unless_sending(record: logging.LogRecord) -> bool:
    return not _sending.get()


# At debug level the library under this writes every answer's headers to its log, signed URLs among them.
for _name in ("httpcore.connection", "httpcore.http11", "httpcore.proxy"):
    logging.getLogger(_name).addFilter(_unless_sending)


@dataclass(frozen=True)
class Tls:
    """How a host proves itself, and we to it: PEM files. `client` has pairs of certificate and key ("": same file)."""

    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool = False

    def for_other_host(self) -> Tls:
        """What holds after a redirect: the trusted authorities, but neither our identity nor blind trust."""
        return Tls(ca=self.ca)


@dataclass(frozen=True)
class Url:
    """An absolute http or https URL, checked. `repr` and `str` leave out the query: it may be a signature."""

    text: str = field(repr=False)
    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str, base: Url | None = None) -> Url:
        """Read `text`, relative to `base` if there is one; `ProtocolViolation` for what no request should go to."""
        try:
            if len(text) > _MAX_URL:
                raise httpx.InvalidURL("too long")
            url = httpx.URL(text) if base is None else httpx.URL(base.text).join(text)
            host = url.host  # Decodes an international name, and fails where it is none.
        except (httpx.InvalidURL, ValueError, TypeError):
            raise ProtocolViolation("an address that is not a URL") from None
        if url.scheme not in ("http", "https") or not host:
            raise ProtocolViolation(f"an address that is neither http nor https: {url.scheme[:20]!r}")
        if url.userinfo:
            raise ProtocolViolation(f"an address with a user name in it, on host {host[:200]}")
        port = (443 if url.scheme == "https" else 80) if url.port is None else url.port
        if not 0 < port < 1 << 16:
            raise ProtocolViolation(f"an address with an impossible port, {str(port)[:20]}, on host {host[:200]}")
        return cls(str(url.copy_with(fragment=None)), url.scheme, host, port, url.path)

    @property
    def origin(self) -> tuple[str, str, int]:
        return (self.scheme, self.host, self.port)

    @property
    def netloc(self) -> str:
        """Host and port as people write them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    def with_query(self, **values: str) -> Url:
        """A copy with `values` added to the query. What is there stays as it is, letter by letter: it may be signed."""
        joint = "&" if "?" in self.text else "?"
        return Url.parse(f"{self.text}{joint}{urlencode(values)}")

    def __str__(self) -> str:
        shown = f"{self.scheme}://{self.netloc}{self.path}"
        return shown if len(shown) <= 300 else shown[:300] + "…"


class Answer:
    """Status, headers and unread body of one request. Close it; reading the body to its end frees the connection."""

    def __init__(self, response: httpx.Response, method: str, url: Url, settings: Settings) -> None:
        self.status = response.status_code
        self.url = url
        self._headers = response.headers
        self._response = response
        self._settings = settings
        self._chunks: Iterator[bytes] = iter(cast(Iterable[bytes], response.stream))
        self._rest = memoryview(b"")
        stream = response.extensions.get("network_stream")
        self._stream = stream if isinstance(stream, Stream) else None
        self._bare = method == "HEAD" or self.status in (204, 304)
        self._chunked = "transfer-encoding" in self._headers
        self._taken = False
        self._ended = False
        self._closed = False
        self._tail = b""
        self._failure: ConnectionFailed | ProtocolViolation | None = None
        self._waited = 0.0
        self._came = 0
        self.received = 0
        stated = self._headers.get("content-length")  # The parser has checked it and refuses two that differ.
        self.length = None if stated is None or self._chunked else int(stated)
        """Content-Length, None when the body has another framing."""
        if self._bare:
            self._drain()

    def header(self, name: str) -> str | None:
        """The header's value; None when absent, `ProtocolViolation` when there are several of it."""
        values = self._headers.get_list(name)
        if len(values) > 1:
            raise ProtocolViolation(f"{self.url.netloc} sent {len(values)} {name} headers")
        return values[0] if values else None

    def headers(self, name: str) -> list[str]:
        return self._headers.get_list(name)

    def readinto(self, view: memoryview) -> int:
        """Read body bytes into `view` until it is full or the body ends; 0 only at the end.

        `ConnectionFailed` when the connection breaks or stands still, after a call that gave what came before.
        """
        if self._failure is not None:
            raise self._failure
        before = self.received
        try:
            while view and not self._ended:
                view = view[self._piece(view) :]
        except (ConnectionFailed, ProtocolViolation) as error:
            if self.received == before:
                raise
            self._failure = error
        return self.received - before

    def read(self, limit: int) -> bytes:
        """The whole body; `TooLarge` beyond `limit` bytes, `ConnectionFailed` when it takes too long."""
        deadline = time.monotonic() + self._settings.document
        body = bytearray()
        buffer = memoryview(bytearray(64 << 10))
        # Piece by piece, not `readinto`: that would wait for a full buffer before the clock is looked at.
        while not self._ended:
            body += buffer[: self._piece(buffer[: limit + 1 - len(body)])]
            if len(body) > limit:
                raise TooLarge(f"{self.url.netloc} answered with more than {limit} bytes")
            if time.monotonic() > deadline:
                raise ConnectionFailed(f"{self.url.netloc} sends too slowly")
        return bytes(body)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._ended = True
            self._rest = memoryview(b"")
            with suppress(httpcore.NetworkError):
                self._response.close()

    def _piece(self, view: memoryview) -> int:
        n = self._unread(view) if self._rest else self._receive(view)
        self.received += n
        return n

    def _pace(self, started: float, nbytes: int) -> None:
        """Count a wait that began at `started`; a body that trickles is as good as one that stands still."""
        self._waited += time.monotonic() - started
        self._came += nbytes
        if self._waited >= self._settings.stall:
            if self._came < self._waited * SLOWEST:
                raise ConnectionFailed(f"{self.url.netloc} sends too slowly")
            self._waited, self._came = 0.0, 0

    def _unread(self, view: memoryview) -> int:
        n = min(len(view), len(self._rest))
        view[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        if not self._rest and self.length is not None and self.received + n >= self.length:
            self._drain()
        return n

    def _receive(self, view: memoryview) -> int:
        length = self.length
        started = time.monotonic()
        if self._taken and self._stream is not None and length is not None:
            with self._mapped():
                n = self._stream.fill(view[: length - self.received], self._settings.stall)
            if not n:
                raise ConnectionFailed(f"{self.url.netloc} broke off after {self.received} of {length} bytes")
            if self.received + n == length:
                self._ended = True
            else:
                self._pace(started, n)
            return n
        with self._mapped():
            chunk = next(self._chunks, None)
        if chunk is None:
            self._finish()
            return 0
        self._pace(started, len(chunk))
        self._tail = (self._tail + chunk)[-4:] if len(chunk) < 4 else chunk[-4:]
        n = min(len(view), len(chunk))
        view[:n] = chunk[:n]
        self._rest = memoryview(chunk)[n:]
        received = self.received + len(chunk)
        if length is not None and received >= length and not self._rest:
            self._drain()
        elif length is not None and length - received >= self._settings.takeover and self._stream is not None:
            # The parser has handed over all that it had: the next byte of the body is the next byte of the socket.
            self._taken = True
        return n

    def _drain(self) -> None:
        """Let the parser see the end of the body, so that the connection can be used again."""
        with self._mapped():
            for _ in self._chunks:
                raise ProtocolViolation(f"{self.url.netloc} sent a body where none belongs")
        self._finish()

    def _finish(self) -> None:
        self._ended = True
        expected = b"\r\n\r\n" if self._chunked or not self._tail else self._tail
        if self._stream is not None and not self._stream.tail.endswith(expected):
            self._stream.retire()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            public = _public(error, self.url)
            if public is error:
                raise
            raise public from error


class Transport:
    """Connections to any number of hosts, kept alive and shared between threads."""

    def __init__(self, settings: Settings, proxies: Proxies, environ: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._proxies = proxies
        self._environ = os.environ if environ is None else environ
        self._lock = threading.Lock()
        self._pools: dict[tuple[Tls | None, str], httpx.BaseTransport] = {}
        self._closed = False

    def send(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
        *,
        tls: Tls,
        answer: float | None = None,
    ) -> Answer:
        """Send one request; return when the answer's headers are there, which may take `answer` seconds.

        `ConnectionFailed` when the host cannot be reached, breaks off or keeps silent, `ProtocolViolation` when what
        it says is not HTTP. An iterable `body` needs a Content-Length header; its own errors pass through.
        """
        tasks.check()
        proxy = self._proxies.find(url.scheme, url.host, url.port)
        wanted = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Accept": "*/*", **headers}
        timeouts = {
            "connect": self._settings.connect,
            "read": self._settings.stall,
            "write": self._settings.stall,
            "pool": self._settings.connect,
        }
        request = httpx.Request(method, url.text, headers=wanted, content=body, extensions={"timeout": timeouts})
        token = _sending.set(True)
        try:
            with awaiting_answer(answer if answer is not None else self._settings.answer):
                response = self._pool(url, tls, proxy).handle_request(request)
        except Exception as error:
            public = _public(error, url, proxy)
            if public is error:
                raise
            if self._closed and isinstance(public, ConnectionFailed):
                raise Closed("the registry client was closed meanwhile") from error
            raise public from error
        finally:
            _sending.reset(token)
        try:
            return Answer(response, method, url, self._settings)
        except BaseException:
            response.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()

    def _pool(self, url: Url, tls: Tls, proxy: str) -> httpx.BaseTransport:
        key = (tls if url.scheme == "https" else None, proxy)
        with self._lock:
            if self._closed:
                raise Closed("the registry client is closed")
            pool = self._pools.get(key)
            if pool is None:
                context = None if key[0] is None else _context(key[0], self._environ)
                proxy_context = _context(Tls(), self._environ) if proxy.startswith("https:") else None
                pool = self._pools[key] = _Pool(context, proxy, proxy_context)
            return pool


class _Pool(httpx.BaseTransport):
    """The HTTP library's connection pool over our sockets."""

    def __init__(self, context: ssl.SSLContext | None, proxy: str, proxy_context: ssl.SSLContext | None) -> None:
        backend = Backend()
        if not proxy:
            self._pool = httpcore.ConnectionPool(
                ssl_context=context,
                max_connections=None,
                max_keepalive_connections=32,
                keepalive_expiry=30.0,
                network_backend=backend,
            )
            return
        try:
            url = httpx.URL(proxy)
            at = Url.parse(f"{url.scheme}://{url.netloc.decode('ascii')}/")
        except (httpx.InvalidURL, ValueError, ProtocolViolation):
            # Not repeated: it may have a password in it.
            raise InvalidArgument("HTTP_PROXY or HTTPS_PROXY is set to something that is not a URL") from None
        self._pool = httpcore.HTTPProxy(
            proxy_url=at.text,
            proxy_auth=(url.username.encode(), url.password.encode()) if url.userinfo else None,
            ssl_context=context,
            proxy_ssl_context=proxy_context,
            max_connections=None,
            max_keepalive_connections=32,
            keepalive_expiry=30.0,
            network_backend=backend,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        inner = self._pool.handle_request(
            httpcore.Request(
                request.method,
                url,
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            inner.status, headers=inner.headers, stream=_Body(inner), extensions=dict(inner.extensions)
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, inner: httpcore.Response) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        return self._inner.iter_stream()

    def close(self) -> None:
        self._inner.close()


def _context(tls: Tls, environ: Mapping[str, str]) -> ssl.SSLContext:
    """TLS as `tls` and SSL_CERT_FILE want it. Without either, the system's authorities, or the library's own copy."""
    named = environ.get("SSL_CERT_FILE", "")
    try:
        if named:
            context = ssl.create_default_context(cafile=named)
        else:
            paths = ssl.get_default_verify_paths()
            context = ssl.create_default_context()
            if not context.cert_store_stats()["x509_ca"] and not (paths.capath and os.listdir(paths.capath)):
                context = httpx.create_ssl_context(trust_env=False)
    except OSError as error:
        raise InvalidArgument(f"SSL_CERT_FILE {named!r} cannot be used: {error.strerror or error}") from error
    for path in tls.ca:
        with _readable_pem(path):
            context.load_verify_locations(cafile=path)
    for certificate, key in tls.client:
        with _readable_pem(certificate):
            # An encrypted key would make OpenSSL ask at the terminal.
            context.load_cert_chain(certificate, key or None, password=lambda: b"")
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _readable_pem(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = "not a usable PEM file" if isinstance(error, (ssl.SSLError, ValueError)) else error.strerror
        raise InvalidArgument(f"certificate {path}: {reason}") from error


def _public(error: Exception, url: Url, proxy: str = "") -> Exception:
    """Our error for one of the HTTP library's; any other comes back as it is."""
    where = url.netloc
    if isinstance(error, httpcore.ProxyError):
        return ConnectionFailed(f"cannot reach {where}: the proxy {_proxy_name(proxy)} refused: {str(error)[:200]}")
    if isinstance(error, (httpcore.ConnectError, httpcore.ConnectTimeout)):
        through = f" through the proxy {_proxy_name(proxy)}" if proxy else ""
        hint = ""
        if "certificate not trusted" in str(error):
            hint = "; name its authority in SSL_CERT_FILE or as `ca` in hosts.toml"
        elif "TLS:" in str(error):
            hint = "; does it speak plain HTTP? then say so in hosts.toml, or by --plain-http"
        return ConnectionFailed(f"cannot connect to {where}{through}: {str(error) or 'failed'}{hint}")
    if isinstance(error, (httpcore.ReadTimeout, httpcore.WriteTimeout, httpcore.PoolTimeout)):
        return ConnectionFailed(f"{where} stood still for too long")
    if isinstance(error, httpcore.NetworkError):
        return ConnectionFailed(f"connection to {where} broke: {str(error) or 'closed'}")
    if isinstance(error, httpcore.RemoteProtocolError):
        text = str(error)
        if "disconnected" in text or "closed connection" in text:
            return ConnectionFailed(f"{where} closed the connection before its answer was complete")
        return ProtocolViolation(f"{where} does not speak proper HTTP: {text[:200]}")
    if isinstance(error, httpcore.UnsupportedProtocol):
        return InvalidArgument(f"cannot reach {where}: {error}")
    if isinstance(error, httpcore.ProtocolError):
        # Ours, or a body shorter than its announced length: the source of an upload says so better.
        return ProtocolViolation(f"the request to {where} could not be sent: {str(error)[:200]}")
    return error


def _proxy_name(proxy: str) -> str:
    url = httpx.URL(proxy)
    return f"{url.host}:{url.port}" if url.port else url.host
