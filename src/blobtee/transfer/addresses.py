"""Addresses of images: what `copy`, `pull` and `push` take.

    python:3.12                 a name in a registry; `docker://` may stand before it
    oci:DIR[:NAME]              an OCI image layout
    oci-archive:FILE[:NAME]     the same in a tar
    docker-archive:FILE[:NAME]  what `docker save` writes

The path ends at the first colon after the scheme, as it does for skopeo.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from blobtee.errors import InvalidArgument
from blobtee.oci import Reference


class Form(Enum):
    """Kinds of places on this machine's disk."""

    LAYOUT = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"


@dataclass(frozen=True)
class FileAddress:
    """`name` is "" when the address gives none."""

    form: Form
    path: Path
    name: str = ""

    def __str__(self) -> str:
        return f"{self.form.value}:{self.path}" + (f":{self.name}" if self.name else "")


Address = Reference | FileAddress


def parse(text: str) -> Address:
    """Read an address. `InvalidArgument`, or `InvalidReference` for what is no name in a registry."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme in {form.value for form in Form}:
        path, _, name = rest.partition(":")
        if not path or "\0" in rest:
            raise InvalidArgument(f"{text[:120]!r}: a path must follow {scheme}:")
        return FileAddress(Form(scheme), Path(path), name)
    return Reference.parse(text.removeprefix("docker://"))
