"""Proxies as the environment names them: HTTP_PROXY, HTTPS_PROXY, NO_PROXY, in either case.

The rules are those that Go's tools follow, because users set these variables for all of them: loopback is never
proxied; NO_PROXY holds names (with their subdomains), addresses, networks (`10.0.0.0/8`), each with an optional port,
or `*`.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from blobtee.errors import InvalidArgument


def is_loopback(name: str) -> bool:
    """Whether a host name or address, without port or brackets, is this machine."""
    with suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")


@dataclass(frozen=True)
class Proxies:
    """`repr` hides the proxies' URLs: they may carry passwords."""

    http: str = field(default="", repr=False)
    https: str = field(default="", repr=False)
    exceptions: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Proxies:
        """`InvalidArgument` when a proxy is neither http:// nor https://."""
        variables = os.environ if environ is None else environ

        def value(name: str) -> str:
            # A CGI server sets HTTP_PROXY from a request's header, hence no upper-case form of it there.
            upper = "" if name == "http_proxy" and "REQUEST_METHOD" in variables else variables.get(name.upper(), "")
            return (variables.get(name, "") or upper).strip()

        exceptions = tuple(part.strip().lower() for part in value("no_proxy").split(",") if part.strip())
        return cls(_proxy(value("http_proxy")), _proxy(value("https_proxy")), exceptions)

    def find(self, scheme: str, host: str, port: int) -> str:
        """URL of the proxy for requests to `host`, "" for none."""
        proxy = self.https if scheme == "https" else self.http
        name = host.lower().rstrip(".")
        if not proxy or is_loopback(name) or any(_matches(rule, name, port) for rule in self.exceptions):
            return ""
        return proxy


def _proxy(value: str) -> str:
    if not value:
        return ""
    url = value if "://" in value else f"http://{value}"
    if not url.lower().startswith(("http://", "https://")):
        raise InvalidArgument("HTTP_PROXY and HTTPS_PROXY must name an http:// or https:// proxy")
    return url


def _matches(rule: str, name: str, port: int) -> bool:
    if rule == "*":
        return True
    with suppress(ValueError):
        network = ipaddress.ip_network(rule, strict=False)
        with suppress(ValueError):
            return ipaddress.ip_address(name) in network
        return False
    pattern, colon, wanted = rule.rpartition(":")
    if colon and wanted.isdigit():
        if int(wanted) != port:
            return False
        rule = pattern.strip("[]")
        with suppress(ValueError):
            return ipaddress.ip_address(name) == ipaddress.ip_address(rule)
    suffix = rule.lstrip("*").lstrip(".")
    return (name == suffix and not rule.startswith(("*", "."))) or name.endswith("." + suffix)
