"""What all verbs share: their options, the store, the registry client, and ending early in good order."""

from __future__ import annotations

import contextvars
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click

from blobtee.cli.errors import INTERRUPTED, Interrupted
from blobtee.cli.output import Output, logging_to
from blobtee.cli.progress import STYLES, shown
from blobtee.content import LocalStore
from blobtee.errors import BlobteeError
from blobtee.oci import Platform, Reference
from blobtee.registry import Credential, Credentials, FileCredentials, Hosts, Registry
from blobtee.registry.hosts import CONFIG_DIRS
from blobtee.registry.settings import Settings
from blobtee.tasks import Cancellation, scope
from blobtee.transfer import Address, FileAddress, parse

_Callback = Callable[..., Any]


def default_root() -> Path:
    """`BLOBTEE_ROOT` is read by the option itself; this is what comes after it."""
    if os.geteuid() == 0:
        return Path("/var/lib/blobtee")
    data = os.environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(data):
        return Path(data) / "blobtee"
    try:
        return Path.home() / ".local" / "share" / "blobtee"
    except RuntimeError:
        raise click.UsageError("this user has no home folder to keep a store in; say --root or BLOBTEE_ROOT") from None


@dataclass
class Session:
    """One run of one verb."""

    root: Path
    output: Output
    progress: str
    username: str = ""
    password_stdin: bool = False
    plain_http: bool | None = None
    tls_verify: bool = True
    hosts_dirs: tuple[str, ...] = ()
    _registry: Registry | None = field(default=None, repr=False)

    @property
    def names_a_registry(self) -> bool:
        """Whether an option says how to speak to registries."""
        return bool(self.username or self.password_stdin or self.hosts_dirs or self.plain_http is not None) or (
            not self.tls_verify
        )

    @contextmanager
    def store(self) -> Iterator[LocalStore]:
        with LocalStore(self.root) as store:
            for problem in store.problems:
                self.output.note(f"warning: {problem}")
            yield store

    @contextmanager
    def registry(
        self, *addresses: Address | str, settings: Settings | None = None, sign_in: Address | str | None = None
    ) -> Iterator[Registry]:
        """The client for the registries that `addresses` name; options for one registry are about these, and a
        password is for that of `sign_in`, where it names one."""
        hosts = _hosts(*addresses)
        found = Hosts(
            self.hosts_dirs or CONFIG_DIRS,
            plain_http=hosts if self.plain_http else (),
            https=hosts if self.plain_http is False else (),
            insecure=() if self.tls_verify else hosts,
        )
        sign_in_at = (_hosts(sign_in) if sign_in is not None else None) or hosts
        with Registry(hosts=found, credentials=self._credentials(sign_in_at), settings=settings) as registry:
            yield registry

    def _credentials(self, hosts: set[str]) -> Credentials:
        if not self.username and not self.password_stdin:
            return FileCredentials()
        if not self.username or not self.password_stdin:
            raise click.UsageError("--username and --password-stdin belong together")
        if len(hosts) != 1:
            raise click.UsageError(
                f"--username is for one registry, and here are {len(hosts)}; use `docker login` for each"
            )
        password = sys.stdin.readline(64 << 10).rstrip("\r\n")
        if not password:
            raise click.UsageError("--password-stdin: there is no password on standard input")
        return _Given(next(iter(hosts)), Credential(self.username, password, source="--username"))


class _Given:
    """The credential of the command line for its registry, the files' for all others (mirrors, for one)."""

    def __init__(self, host: str, credential: Credential) -> None:
        self._host = host
        self._credential = credential
        self._files = FileCredentials()

    def get(self, host: str, repository: str) -> Credential | None:
        return self._credential if host == self._host else self._files.get(host, repository)


def _hosts(*addresses: Address | str) -> set[str]:
    """The registries that are named; what is no address names none."""
    hosts = set()
    for address in addresses:
        with suppress(BlobteeError):
            parsed = parse(address) if isinstance(address, str) else address
            if isinstance(parsed, Reference):
                hosts.add(parsed.host)
    return hosts


class PlatformType(click.ParamType[Platform]):
    name = "platform"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Platform:
        try:
            return value if isinstance(value, Platform) else Platform.parse(value)
        except BlobteeError as error:
            self.fail(str(error), param, ctx)


class AddressType(click.ParamType[str]):
    """Text that is an address: checked here, so that nonsense is wrong usage."""

    name = "address"

    def __init__(self, *, remote_only: bool = False) -> None:
        self._remote_only = remote_only

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            address = parse(value)
        except BlobteeError as error:
            self.fail(str(error), param, ctx)
        if self._remote_only and isinstance(address, FileAddress):
            self.fail(f"{value!r} is not a name in a registry", param, ctx)
        return str(value)


_COMMON = (
    click.option(
        "--root",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="BLOBTEE_ROOT",
        default=default_root,
        show_default="BLOBTEE_ROOT, else /var/lib/blobtee for root, else the XDG data folder",
        help="The store's folder.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Data as JSON: lists as one object a line."),
    click.option("--quiet", "-q", is_flag=True, help="Nothing on standard error but errors."),
    click.option(
        "--progress",
        type=click.Choice(STYLES),
        default="auto",
        show_default=True,
        help="On standard error: bars on a terminal, else a line a second; rawjson is an object for each event.",
    ),
    click.option("--debug", is_flag=True, help="Show tracebacks of errors."),
)
_HOSTS_DIR = click.option(
    "--hosts-dir",
    "hosts_dirs",
    type=click.Path(file_okay=False),
    multiple=True,
    help="Folder of hosts.toml folders; may be given again.  [default: /etc/containerd/certs.d]",
)
_REMOTE = (
    click.option("--username", "-u", default="", help="Sign in as this user instead of as the files say."),
    click.option("--password-stdin", is_flag=True, help="Read the password from the first line of standard input."),
    click.option(
        "--plain-http/--no-plain-http",
        default=None,
        help="Speak HTTP to the registries named; the default is to do so on loopback only.",
    ),
    click.option("--tls-verify/--no-tls-verify", default=True, help="Check the registries' certificates (default)."),
    _HOSTS_DIR,
)


def verb(*, remote: bool = False, hosts: bool = False) -> Callable[[_Callback], _Callback]:
    """Make a function the callback of a verb: it gets a `Session` first, and what its own options give.

    A `remote` verb has all options for registries; one that names none, but may meet `hosts`, those for any.
    """
    extra = _REMOTE if remote else (_HOSTS_DIR,) if hosts else ()
    names = _REMOTE_NAMES if remote else ("hosts_dirs",) if hosts else ()

    def decorate(function: _Callback) -> _Callback:
        @functools.wraps(function)
        def callback(root: Path, as_json: bool, quiet: bool, progress: str, debug: bool, **given: Any) -> int:
            remote_options = {key: given.pop(key) for key in names}
            session = Session(root, Output(as_json, quiet), "quiet" if quiet else progress, **remote_options)

            def work() -> int:
                with shown(session.progress) as session.output.clear, logging_to(session.output):
                    return function(session, **given) or 0

            return interruptible(work)

        decorated: _Callback = callback
        for option in reversed((*_COMMON, *extra)):
            decorated = option(decorated)
        return decorated

    return decorate


_REMOTE_NAMES = ("username", "password_stdin", "plain_http", "tls_verify", "hosts_dirs")


def interruptible(work: Callable[[], int]) -> int:
    """Run `work` so that SIGINT and SIGTERM cancel it: `Interrupted` when it has cleaned up. A second one ends at once.

    The work has a thread of its own: a signal handler runs between any two steps of the main thread, where the locks
    that cancelling needs may be held.
    """
    cancellation = Cancellation()
    # The kernel may give a signal to any thread, as it does while a tracer has the main one: by the wakeup descriptor
    # the main thread hears of those too.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    outcome: list[int | BaseException] = []

    def body() -> None:
        try:
            with scope(cancellation):
                outcome.append(work())
        except BaseException as error:
            outcome.append(error)
        os.write(writer, b"\0")

    def heard(number: int, frame: FrameType | None) -> None:
        """What is done is done by the reader."""

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    interrupted = False
    try:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(body,), name="blobtee-verb", daemon=True)
        thread.start()
        while (number := os.read(reader, 1)[0]) != 0:
            if number not in before:
                continue
            if interrupted:
                os._exit(INTERRUPTED)
            interrupted = True
            cancellation.cancel("interrupted")
        thread.join()
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
    result = outcome[0]
    if interrupted and isinstance(result, BaseException):
        raise Interrupted from result
    if isinstance(result, BaseException):
        raise result
    return result
