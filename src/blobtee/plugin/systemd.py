"""What systemd says to a service and wants to hear (sd_notify(3), sd_listen_fds(3)), without its library."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, MutableMapping

from blobtee.errors import InvalidArgument

_logger = logging.getLogger(__name__)
_FIRST_FD = 3


def notify(**states: str) -> None:
    """Tell the service manager, if there is one, such as `READY="1"`. Never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    message = "\n".join(f"{name}={value}" for name, value in states.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall(message.encode())
    except OSError as error:
        _logger.warning("cannot tell systemd: %s", error)


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear `WATCHDOG="1"`, with some to spare; None when it does not."""
    try:
        if int(os.environ.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return None
        return int(os.environ["WATCHDOG_USEC"]) / 1e6 / 2
    except (KeyError, ValueError):
        return None


def inherited(environment: MutableMapping[str, str] = os.environ) -> Iterator[tuple[str, socket.socket]]:
    """The listening sockets that systemd holds for this process, with their names; taken once, whoever is started from
    here does not see them."""
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return
    for index in range(int(count)):
        try:
            os.set_inheritable(_FIRST_FD + index, False)
            listener = socket.socket(fileno=_FIRST_FD + index)
            listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise InvalidArgument(f"descriptor {_FIRST_FD + index} of systemd's is no socket: {error}") from error
        if not listens or listener.family != socket.AF_UNIX:
            raise InvalidArgument(
                f"descriptor {_FIRST_FD + index} of systemd's does not listen on a path: ListenStream="
            )
        yield (names[index] if index < len(names) else "unknown"), listener
