"""Platforms, and which image of an index fits one."""

from __future__ import annotations

import platform as host
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blobtee.errors import InvalidArgument, InvalidDocument

_WORD = re.compile(r"[A-Za-z0-9_.-]+\Z")
_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "i386": "386",
    "i686": "386",
    "riscv64": "riscv64",
}
_IMPLIED = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
"""The variant that is meant when none is named (containerd `platforms`, normalisation)."""


@dataclass(frozen=True)
class Platform:
    """`os/architecture[/variant]`, in Go's names."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read `linux/amd64`, `linux/arm/v7` or `arm64` (Linux is meant then)."""
        parts = text.split("/")
        if not 1 <= len(parts) <= 3 or not all(_WORD.match(part) for part in parts):
            raise InvalidArgument(f"not a platform: {text[:100]!r} (wanted: os/architecture, such as linux/arm64)")
        if len(parts) == 1:
            parts.insert(0, "linux")
        parts = [part.lower() for part in parts]
        architecture, variant = parts[1], parts[2] if len(parts) == 3 else ""
        if architecture in ("armhf", "armel") and not variant:
            variant = "v7" if architecture == "armhf" else "v6"
        return cls(parts[0], _ARCHITECTURES.get(architecture, architecture), variant)

    @classmethod
    def current(cls) -> Platform:
        """Linux on this machine's processor."""
        machine = host.machine().lower()
        if machine.startswith("armv"):
            return cls("linux", "arm", f"v{machine[4]}")
        return cls("linux", _ARCHITECTURES.get(machine, machine))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Platform:
        texts = [value.get(key) or "" for key in ("os", "architecture", "variant", "os.version")]
        features = value.get("os.features") or []
        if not all(isinstance(text, str) for text in texts) or not isinstance(features, list):
            raise InvalidDocument("a platform's fields must be strings")
        return cls(texts[0], texts[1], texts[2], texts[3], tuple(str(feature) for feature in features))

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            value["os.version"] = self.os_version
        if self.os_features:
            value["os.features"] = list(self.os_features)
        if self.variant:
            value["variant"] = self.variant
        return value

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def candidates(self) -> Sequence[tuple[str, str]]:
        """(architecture, variant) pairs that run here, best first."""
        variant = self.variant or _IMPLIED.get(self.architecture, "")
        if self.architecture in ("arm", "amd64") and variant[1:].isdigit():
            lowest = 5 if self.architecture == "arm" else 1
            return [(self.architecture, f"v{n}") for n in range(int(variant[1:]), lowest - 1, -1)]
        if self.architecture == "arm64" and variant == "v8":
            return [("arm64", "v8")]
        return [(self.architecture, variant)]

    def rank(self, offered: Platform) -> int | None:
        """How well an image for `offered` runs on this platform: 0 is best, None not at all."""
        if offered.os != self.os or (self.os_version and offered.os_version != self.os_version):
            return None
        architecture = _ARCHITECTURES.get(offered.architecture, offered.architecture)
        pair = (architecture, offered.variant or _IMPLIED.get(architecture, ""))
        candidates = self.candidates()
        return candidates.index(pair) if pair in candidates else None
