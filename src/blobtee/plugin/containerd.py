"""containerd's configuration: the lines that make blobtee its content store, and what is wrong with one that has them.

The facts are those of `spec/content.md` section 1.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blobtee.errors import InvalidDocument, NotFound, from_os_error

BUILT_IN = "io.containerd.content.v1.content"
_METADATA = "io.containerd.metadata.v1.bolt"
_VERSIONS = {1: (1, 2), 2: (2, 3)}
"""Versions of the file that every containerd of a major version reads these lines in; the last is what we write."""
_SINCE = {4: (2, 3)}
"""Versions of the file that came later, and with which containerd; these lines are the same in them."""

_NEWEST = 1 << 30
MAX_CONFIG = 4 << 20
_MOST_FILES = 1000
_LISTS = ("disabled_plugins", "required_plugins")


@dataclass(frozen=True)
class Problem:
    """`what` is wrong, and its `cure`, each a sentence. With `fatal` off, containerd runs all the same."""

    what: str
    cure: str
    fatal: bool = True


def installed_version(program: str = "containerd") -> tuple[int, int]:
    """Major and minor version of the containerd that `program` starts. `NotFound`: there is none, or it is mute."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFound(f"cannot ask {program} for its version: {error}") from error
    found = re.search(r"\bv?(\d+)\.(\d+)\.\d+", done.stdout)
    if found is None:
        raise NotFound(f"{program} --version does not say a version")
    return int(found[1]), int(found[2])


def configuration(major: int, socket: Path, name: str) -> str:
    """The TOML for a containerd of this major version with its store at `socket`, as the proxy plugin `name`."""
    version = _VERSIONS[2 if major >= 2 else 1][-1]
    return f"""\
version = {version}
disabled_plugins = ["{BUILT_IN}"]
required_plugins = ["io.containerd.content.v1.{name}", "{_METADATA}"]

[proxy_plugins.{name}]
  type = "content"
  address = "{socket}"
"""


def load(path: Path) -> Mapping[str, Any]:
    """The parts of the configuration that `check` looks at, as containerd puts them together of the file and of those
    that it imports (containerd `cmd/containerd/server/config`): one after another, each once; lists are joined, and a
    plugin is what the last file says of it. `NotFound`, also of an import without a `*`; `InvalidDocument`."""
    whole: dict[str, Any] = {"proxy_plugins": {}, **{key: [] for key in _LISTS}}
    pending, loaded = [path.absolute()], set[Path]()
    while pending:
        path = pending.pop(0)
        if path in loaded:
            continue
        loaded.add(path)
        if len(loaded) > _MOST_FILES:
            raise InvalidDocument(f"{path}: more than {_MOST_FILES} files are imported")
        part = _read(path)
        whole.setdefault("version", part.get("version", 1))
        for key in _LISTS:
            whole[key] += [name for name in _names(part, key) if name not in whole[key]]
        plugins = part.get("proxy_plugins")
        whole["proxy_plugins"] |= plugins if isinstance(plugins, Mapping) else {}
        for name in _names(part, "imports"):
            pattern = os.path.normpath(os.path.join(path.parent, name))
            found = sorted(glob.glob(pattern, include_hidden=True))
            pending += [Path(each) for each in found] if "*" in name else [Path(pattern)]
    return whole


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG + 1)
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
    if len(text) > MAX_CONFIG:
        raise InvalidDocument(f"{path} is no configuration: more than {MAX_CONFIG} bytes")
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"{path} is not TOML: {error}") from None


def check(config: Mapping[str, Any], major: int, minor: int | None = None) -> list[Problem]:
    """What keeps a containerd of this version (by default the newest known of `major`) from running on blobtee, or is
    unsafe."""
    return list(_problems(config, 2 if major >= 2 else 1, (major, _NEWEST if minor is None else minor)))


def content_sockets(config: Mapping[str, Any]) -> list[Path]:
    """Where a configuration that was loaded has its content stores."""
    plugins = config["proxy_plugins"].values()
    found = [each.get("address") for each in plugins if isinstance(each, Mapping) and each.get("type") == "content"]
    return [Path(address.removeprefix("unix://")) for address in found if isinstance(address, str) and address]


def is_meant(config: Mapping[str, Any]) -> bool:
    """Whether a configuration that was loaded is to have its content elsewhere than in the built-in store."""
    plugins = config["proxy_plugins"].values()
    return BUILT_IN in config["disabled_plugins"] or any(
        isinstance(each, Mapping) and each.get("type") == "content" for each in plugins
    )


def _problems(config: Mapping[str, Any], major: int, installed: tuple[int, int]) -> Iterator[Problem]:
    known = [*_VERSIONS[major], *(version for version, since in _SINCE.items() if installed >= since)]
    version = config.get("version", 1)
    if version not in known:
        yield Problem(
            f"version = {version!r:.40} is not one that containerd {major}.x reads these lines in",
            f"say version = {_VERSIONS[major][-1]} at the top, in the form of that version",
        )
    elif version == 1:
        yield Problem("version = 1 is an old form", "say version = 2: plugins have their full names there")
    disabled, required = _names(config, "disabled_plugins"), _names(config, "required_plugins")
    found = config.get("proxy_plugins", {})
    plugins = found if isinstance(found, Mapping) else {}
    stores = {
        name: plugin
        for name, plugin in plugins.items()
        if isinstance(plugin, Mapping) and plugin.get("type") == "content"
    }
    if not stores:
        yield Problem("no proxy plugin is of the type content", "add [proxy_plugins.blobtee]: see `containerd config`")
    if len(stores) > 1:
        yield Problem(f"{len(stores)} proxy plugins are content stores: {', '.join(stores)}", "keep one of them")
    if BUILT_IN not in disabled:
        yield Problem(
            "the built-in store is not disabled: containerd 1.6 takes one of the two at random at each start, 2.x "
            "starts with all that needs content in error",
            f'add "{BUILT_IN}" to disabled_plugins, above the first [table] of the file',
        )
    for name, plugin in stores.items():
        identity = f"io.containerd.content.v1.{name}"
        if identity in disabled:
            yield Problem(f"{identity} itself is disabled", "take it out of disabled_plugins")
        for needed in (identity, _METADATA):
            if needed not in required:
                yield Problem(
                    f"{needed} is not required: without it containerd starts, and does nothing",
                    f'add "{needed}" to required_plugins, above the first [table] of the file',
                    fatal=False,
                )
        yield from _problems_of_address(plugin.get("address"))


def _problems_of_address(address: object) -> Iterator[Problem]:
    if not isinstance(address, str) or not address:
        yield Problem("the plugin has no address", "say the socket of `blobtee serve`: an absolute path")
    elif "://" in address:
        yield Problem(
            f"the address {address:.200} has a scheme: containerd 2.x looks for a file of that name",
            f"write it as a path: {address.partition('://')[2]:.200}",
        )
    elif not address.startswith("/"):
        yield Problem(f"the address {address:.200} is no absolute path", "containerd's folder may be any: begin with /")


def _names(config: Mapping[str, Any], key: str) -> list[str]:
    found = config.get(key, [])
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
