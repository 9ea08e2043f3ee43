"""Which hosts answer for a registry's name: itself, or what a `hosts.toml` says.

The file and its meaning are containerd's (`docs/hosts.md` there): a folder for each host, mirrors in the order
of the file, then the server.
"""

from __future__ import annotations

import os
import threading
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from blobtee.errors import InvalidArgument, InvalidDocument, ProtocolViolation, from_os_error
from blobtee.oci.reference import DOCKER_HUB
from blobtee.registry.proxies import is_loopback
from blobtee.registry.transport import Tls, Url

CONFIG_DIRS = ("/etc/containerd/certs.d",)
HUB_SERVER = "registry-1.docker.io"
CAPABILITIES = frozenset({"pull", "resolve", "push"})
_MAX_FILE = 1 << 20


@dataclass(frozen=True)
class Host:
    """Where requests for one registry may go. `base` is the URL before `/<repository>/…`, `/v2` included.

    `namespace` is the registry's own name when this is a mirror of it, sent along as `ns=`. `headers` may be secrets,
    so `repr` leaves them out.
    """

    base: Url
    capabilities: frozenset[str] = CAPABILITIES
    namespace: str = ""
    tls: Tls = field(default_factory=Tls)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        return self.base.netloc

    def url(self, path: str, **query: str) -> Url:
        """URL of `path` (`/<repository>/tags/list`) on this host."""
        values = {**query, **({"ns": self.namespace} if self.namespace else {})}
        url = Url.parse(self.base.text + path)
        return url.with_query(**values) if values else url


class Hosts:
    """Finds the hosts for a name. Thread-safe; a registry's folder is read once.

    `config_dirs` are searched for `<host>_<port>_`, `<host>:<port>` and `_default`, in this order, first folder wins;
    one without a `hosts.toml` may hold docker's certificate files.
    `plain_http` and `https` name registries (`host:port`) whose scheme is not the usual one: HTTPS, but plain HTTP on
    loopback. `insecure` names registries whose certificates are not checked. A `hosts.toml` has the last word.
    """

    def __init__(
        self,
        config_dirs: Iterable[str | os.PathLike[str]] = CONFIG_DIRS,
        *,
        plain_http: Collection[str] = (),
        https: Collection[str] = (),
        insecure: Collection[str] = (),
    ) -> None:
        if any(isinstance(given, str) for given in (config_dirs, plain_http, https, insecure)):
            raise InvalidArgument("folders and registries are given as lists, also a single one")
        self._folders = [Path(folder) for folder in config_dirs]
        self._plain = frozenset(plain_http)
        self._secure = frozenset(https)
        self._insecure = frozenset(insecure)
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Host, ...]] = {}

    def find(self, registry: str, capability: str) -> tuple[Host, ...]:
        """The hosts of `registry` (as in a reference) that offer `capability`, in the order to try them; never empty.

        `InvalidDocument` names a `hosts.toml` that cannot be read, `InvalidArgument` a registry without such a host.
        """
        with self._lock:
            hosts = self._known.get(registry)
            if hosts is None:
                hosts = self._known[registry] = self._load(registry)
        able = tuple(host for host in hosts if capability in host.capabilities)
        if not able:
            raise InvalidArgument(f"no host for {registry} may {capability}; see `capabilities` in its hosts.toml")
        return able

    def _load(self, registry: str) -> tuple[Host, ...]:
        server = self._default(registry)
        for folder in self._folders:
            for name in _folder_names(registry):
                path = folder / name / "hosts.toml"
                document = _read(path)
                if document is not None:
                    return _Parser(path, registry, server).hosts(document)
                if path.parent.is_dir():
                    return (replace(server, tls=_docker_certificates(path.parent, server.tls)),)
        return (server,)

    def _default(self, registry: str) -> Host:
        address = HUB_SERVER if registry == DOCKER_HUB else registry
        try:
            plain = Url.parse(f"http://{address}/v2")
            local = is_loopback(plain.host) and plain.port != 443
            scheme = "http" if registry in self._plain or (local and registry not in self._secure) else "https"
            return Host(Url.parse(f"{scheme}://{address}/v2"), tls=Tls(skip_verify=registry in self._insecure))
        except ProtocolViolation as error:
            raise InvalidArgument(f"{registry[:200]!r} is not a registry: {error}") from None


def _folder_names(registry: str) -> list[str]:
    host, colon, port = registry.rpartition(":")
    with_port = [f"{host}_{port}_"] if colon and port.isdigit() else []
    return [*with_port, registry, "_default"]


def _docker_certificates(folder: Path, tls: Tls) -> Tls:
    """`tls` with what docker's layout has in `folder`: authorities in `*.crt`, ourselves in `*.cert` and `*.key`."""
    try:
        names = sorted(path for path in folder.iterdir() if path.suffix in (".crt", ".cert"))
    except OSError as error:
        raise from_os_error(error, f"read {folder}") from error
    ca = tuple(str(path) for path in names if path.suffix == ".crt")
    client = tuple((str(path), str(path.with_suffix(".key"))) for path in names if path.suffix == ".cert")
    return replace(tls, ca=ca, client=client)


def _read(path: Path) -> Mapping[str, object] | None:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
    if len(raw) > _MAX_FILE:
        raise InvalidDocument(f"{path}: larger than {_MAX_FILE} bytes")
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        # The parser's message quotes at most a character or two, never a header's value.
        raise InvalidDocument(f"{path}: not TOML: {str(error)[:200]}") from None


class _Parser:
    def __init__(self, path: Path, registry: str, server: Host) -> None:
        self._path = path
        self._registry = registry
        self._server = server

    def hosts(self, document: Mapping[str, object]) -> tuple[Host, ...]:
        mirrors = document.get("host", {})
        if not isinstance(mirrors, dict):
            raise self._bad("`host` must be a table")
        found = [self._host(address, self._table(table, f'host."{address}"')) for address, table in mirrors.items()]
        server = document.get("server", "")
        if not isinstance(server, str):
            raise self._bad("`server` must be a string")
        if not any(host.base.text == self._server.base.text for host in found) or server:
            found.append(self._host(server or self._server.base.text, document))
        return tuple(found)

    def _host(self, address: str, table: Mapping[str, object]) -> Host:
        base = self._base(address, self._flag(table, "override_path"))
        named = table.get("capabilities", [])
        wanted = frozenset(str(name).lower() for name in named) if isinstance(named, list) else frozenset({""})
        if not wanted <= CAPABILITIES:
            raise self._bad(f"capabilities must be some of {', '.join(sorted(CAPABILITIES))}")
        tls = Tls(self._files(table.get("ca")), self._pairs(table.get("client")), self._flag(table, "skip_verify"))
        own = {self._server.name, self._registry}
        return Host(
            base,
            wanted or CAPABILITIES,  # None named means all, as for containerd.
            "" if base.netloc in own else self._registry,
            tls,
            self._headers(table.get("header")),
        )

    def _base(self, address: str, override_path: bool) -> Url:
        try:
            if "://" not in address:
                local = is_loopback(Url.parse(f"http://{address}").host)
                address = f"{'http' if local else 'https'}://{address}"
            url = Url.parse(address.rstrip("/"))
        except ProtocolViolation as error:
            raise self._bad(f"{address[:200]!r}: {error}") from None
        if override_path or url.path.rstrip("/").endswith("/v2"):
            return Url.parse(address.rstrip("/"))
        return Url.parse(address.rstrip("/") + "/v2")

    def _headers(self, value: object) -> tuple[tuple[str, str], ...]:
        found: list[tuple[str, str]] = []
        for name, texts in self._table(value or {}, "header").items():
            for text in texts if isinstance(texts, list) else [texts]:
                printable = isinstance(text, str) and text.isascii() and text.isprintable()
                if not printable or not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
                    raise self._bad(f"header {name[:60]!r} is not a proper header")
                found.append((name, str(text)))
        return tuple(found)

    def _files(self, value: object) -> tuple[str, ...]:
        names = [value] if isinstance(value, str) else value or []
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise self._bad("`ca` must be a file name or a list of them")
        return tuple(self._file(name) for name in names)

    def _pairs(self, value: object) -> tuple[tuple[str, str], ...]:
        entries = [value] if isinstance(value, str) else value or []
        if not isinstance(entries, list):
            raise self._bad("`client` must be a file name, or a list of names or of pairs")
        pairs: list[tuple[str, str]] = []
        for entry in entries:
            if isinstance(entry, str) and entry:
                pairs.append((self._file(entry), ""))
            elif isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
                pairs.append((self._file(entry[0]), self._file(entry[1]) if entry[1] else ""))
            else:
                raise self._bad("`client` must be a file name, or a list of names or of pairs")
        return tuple(pairs)

    def _file(self, name: str) -> str:
        return str(self._path.parent / name)

    def _flag(self, table: Mapping[str, object], key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self._bad(f"`{key}` must be true or false")
        return value

    def _table(self, value: object, name: str) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise self._bad(f"`{name[:200]}` must be a table")
        return value

    def _bad(self, reason: str) -> InvalidDocument:
        return InvalidDocument(f"{self._path}: {reason}")
