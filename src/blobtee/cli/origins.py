"""The registries that the blobs of a store come from: for verbs that name none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import click

from blobtee.cli.session import Session
from blobtee.content import LocalStore
from blobtee.oci import Reference
from blobtee.plugin.known import KnownBlobs
from blobtee.registry import Registry
from blobtee.registry.settings import Settings
from blobtee.transfer import images

_NAMED = 5


@contextmanager
def registry_of(session: Session, store: LocalStore, *, settings: Settings | None = None) -> Iterator[Registry]:
    """The client for them. `UsageError`: an option is for one registry, and they are more: nobody's credentials go in
    the clear, or to whom nobody checked, because another registry needs that."""
    names = {*images.repositories(store), *KnownBlobs(store).repositories()} if session.names_a_registry else set()
    hosts = sorted({Reference.parse(name).host for name in names})
    given = {
        "--username": session.username or session.password_stdin,
        "--plain-http": session.plain_http,
        "--no-tls-verify": not session.tls_verify,
    }
    option = next((option for option, is_given in given.items() if is_given), None)
    if option is not None and len(hosts) > 1:
        told = ", ".join(hosts[:_NAMED]) + (" and others" if len(hosts) > _NAMED else "")
        raise click.UsageError(
            f"{option} is for one registry, and the store has blobs of {told}; use `docker login`, or hosts.toml files"
        )
    if not hosts:
        session = replace(session, username="", password_stdin=False)  # there is nobody to ask
    with session.registry(*names, settings=settings) as registry:
        yield registry
