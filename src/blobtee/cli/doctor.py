"""`blobtee doctor`."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import click

from blobtee import core
from blobtee._version import __version__
from blobtee.cli.session import Session, verb
from blobtee.cli.sizes import nbytes
from blobtee.errors import BlobteeError, ConnectionFailed, DeadlineExceeded, FailedPrecondition, NotFound, Unimplemented
from blobtee.plugin import containerd
from blobtee.plugin.sockets import refusal
from blobtee.registry import FileCredentials
from blobtee.registry.hosts import CONFIG_DIRS

_MAX_FILE = 4 << 20
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@click.command()
@click.option(
    "--containerd-config",
    "config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/containerd/config.toml"),
    show_default=True,
    help="What the containerd of this machine reads.",
)
@verb(remote=True)
def command(session: Session, config: Path) -> int:
    """Print what a bug report needs: versions, the CPU path in use, the store, and what is found of the surroundings.

    No secret is printed: of credentials only where they are and for which hosts.

    \b
    Examples:
      blobtee doctor
      blobtee doctor --json > report.json
    """
    report = {
        "blobtee": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs",
        "cpu": _cpu(),
        "libraries": {**core.library_versions(), **_packages()},
        "store": _store(session),
        "containerd": _containerd(config),
        "credentials": _credentials(),
        "hosts": _hosts(session),
        "proxies": _proxies(os.environ),
        "environment": {key: os.environ[key] for key in sorted(os.environ) if key in _VARIABLES},
    }
    if session.output.as_json:
        session.output.line(json.dumps(report))
    else:
        _print(session, report, "")
    return 0


_SIGN_IN = re.compile(r"^([a-z0-9+.-]*://)?.*@", re.IGNORECASE | re.DOTALL)
"""In a proxy's URL, where a password may hold any character."""

_VARIABLES = frozenset(
    {"BLOBTEE_ROOT", "SSL_CERT_FILE", "SSL_CERT_DIR", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "BLOBTEE_CPU"}
)


def _cpu() -> dict[str, object]:
    features = core.cpu_features()
    return {
        "sha256": features.sha256,
        "sha256 lanes": features.sha256_lanes,
        "crc32c": features.crc32c,
        "found": sorted(features.found),
        "allowed": sorted(features.allowed),
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in ("httpx", "httpcore", "zstandard", "cffi", "click", "rich"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _store(session: Session) -> dict[str, object]:
    root = session.root
    found: dict[str, object] = {"root": str(root), "exists": os.path.isdir(root / "blobs")}
    existing = next((folder for folder in (root, *root.absolute().parents) if os.path.exists(folder)), Path("/"))
    usage = shutil.disk_usage(existing)
    found["free"] = usage.free
    if not found["exists"]:
        return found
    try:
        with session.store() as store:
            infos = list(store.walk())
            found |= {
                "writable": not store.read_only,
                "images": len(store.layout.names()),
                "blobs": len(infos),
                "bytes": sum(info.size for info in infos),
                "ingests": len(store.statuses()),
                "quarantined": [info.digest for info in store.quarantined()],
                "problems": list(store.problems),
            }
    except BlobteeError as error:
        found["problems"] = [str(error)]
    return found


def _containerd(config: Path) -> dict[str, object]:
    """Version and configuration of the machine's containerd, and whether its content store answers."""
    found: dict[str, object] = {}
    try:
        major, minor = containerd.installed_version()
        found["version"] = f"{major}.{minor}"
    except NotFound:
        return {"version": "not installed"}
    if not os.path.exists(config):
        return found | {"config": f"no {config}: containerd has its built-in store"}
    found["config"] = str(config)
    try:
        loaded = containerd.load(config)
    except BlobteeError as error:
        return found | {"problems": [str(error)]}
    sockets = containerd.content_sockets(loaded)
    found["sockets"] = {str(socket): answer(socket) for socket in sockets}
    problems = containerd.check(loaded, major, minor) if containerd.is_meant(loaded) else []
    return found | {"problems": [f"{problem.what}: {problem.cure}" for problem in problems]}


def answer(socket: Path) -> str:
    """What is at the other end of a socket, and what to do about it."""
    number = refusal(socket)
    if number:
        return refused(socket, number)
    try:
        from blobtee.plugin.client import is_serving
    except (ImportError, FailedPrecondition):
        return "not asked: pip install 'blobtee[containerd]'"
    try:
        return "serving" if is_serving(socket) else "stopping: it finishes what is under way and takes no more"
    except Unimplemented:
        return "serving, but it is not blobtee: see what else listens there"
    except (DeadlineExceeded, ConnectionFailed):  # it did take the connection a moment ago
        return "hanging: it takes connections and does not answer; see its log, and restart it"
    except BlobteeError as error:
        return str(error)


def refused(socket: Path, number: int) -> str:
    """What connecting to a socket ended with, `number`, means, and what to do about it."""
    if number == errno.ECONNREFUSED and not socket.is_socket():
        return f"no socket: another file has its name; remove that, and start `blobtee serve --socket {socket}`"
    if number == errno.ECONNREFUSED:
        return (
            "stale: the server that made it has ended without removing it; start it again (systemctl restart blobtee), "
            "and it puts its own there"
        )
    if number in (errno.ENOENT, errno.ENOTDIR):
        return (
            f"missing: start `blobtee serve --socket {socket}` (systemctl start blobtee) before containerd; "
            "if it runs, the two have different paths"
        )
    if number in (errno.EACCES, errno.EPERM):
        return (
            "forbidden: this user may not connect; be the user of containerd (mostly root), or give the socket another "
            "--group and --mode"
        )
    if number == errno.EAGAIN:
        return "hanging: as many wait to be connected as the kernel keeps waiting; see its log, and restart it"
    if number == errno.EPROTOTYPE:
        return "no server of ours: it is not a stream socket; see what else listens there"
    return f"not to be reached: {os.strerror(number)}"


def _credentials() -> list[dict[str, object]]:
    """The files there are, and for each host what kind of credential it has there."""
    found = []
    for path in FileCredentials().files():
        if os.path.exists(path):
            found.append({"file": str(path), **_kinds(path)})
    return found


def _kinds(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_FILE))
    except OSError as error:
        return {"problem": error.strerror or "cannot be read"}
    except (ValueError, RecursionError):
        return {"problem": "not JSON"}
    if not isinstance(document, dict):
        return {"problem": "not a JSON object"}
    hosts: dict[str, str] = {}
    auths, helpers = document.get("auths"), document.get("credHelpers")
    for host, entry in (auths if isinstance(auths, dict) else {}).items():
        kept = isinstance(entry, dict) and entry
        hosts[host] = "identity token" if kept and entry.get("identitytoken") else "password" if kept else "empty"
    for host, helper in (helpers if isinstance(helpers, dict) else {}).items():
        hosts[host] = f"helper docker-credential-{helper}"
    store = document.get("credsStore")
    return {"hosts": hosts} | ({"store": f"docker-credential-{store}"} if isinstance(store, str) and store else {})


def _hosts(session: Session) -> dict[str, list[str]]:
    found = {}
    for name in session.hosts_dirs or CONFIG_DIRS:
        folder = Path(name)
        try:
            found[name] = sorted(entry.name for entry in folder.iterdir() if os.path.exists(entry / "hosts.toml"))
        except OSError:
            continue
    return found


def _proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """The proxies set, without the passwords in them."""
    names = [name for pair in _PROXIES for name in (pair, pair.lower())]
    return {name: _SIGN_IN.sub(r"\1***@", environ[name]) for name in names if environ.get(name)}


def _print(session: Session, value: object, indent: str) -> None:
    assert isinstance(value, dict)
    for key, member in value.items():
        if isinstance(member, dict) and member:
            session.output.line(f"{indent}{key}:")
            _print(session, member, indent + "  ")
        elif isinstance(member, list) and member and isinstance(member[0], dict):
            session.output.line(f"{indent}{key}:")
            for item in member:
                _print(session, item, indent + "  ")
        else:
            session.output.line(f"{indent}{key}: {_text(key, member)}")


def _text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key in ("free", "bytes"):
        return nbytes(value)
    if isinstance(value, list | dict):
        return ", ".join(map(str, value)) or "none"
    return str(value)
