"""Whether registries still have what is to go: asked by HEAD, just before it goes."""

from __future__ import annotations

from collections.abc import Collection

from blobtee.errors import BlobteeError, Cancelled, Closed, ConnectionFailed
from blobtee.oci import Digest, Reference
from blobtee.registry import Registry
from blobtee.registry.settings import Settings

HASTY = Settings(connect=5.0, answer=10.0, attempts=1)
"""For a client that asks only this: a registry that does not answer must not hold up making room."""


class Obtaining:
    """Asks each repository once for a blob, and a registry that cannot be reached not again."""

    def __init__(self, registry: Registry) -> None:
        """`registry` stays the caller's; its settings bound how long an answer may take."""
        self._registry = registry
        self._answers: dict[tuple[Digest, str], str] = {}
        self._silent: dict[str, str] = {}

    def refusal(self, digest: Digest, size: int, wanted: Collection[frozenset[str]]) -> str:
        """Why the blob is not to be had, in a sentence; empty when one repository of each of the sets has it, of this
        size. `Cancelled`, `Closed`."""
        for names in sorted(wanted, key=sorted):
            refusals = []
            for name in sorted(names):
                refusal = self._ask(digest, size, name)
                if not refusal:
                    break
                refusals.append(refusal)
            else:
                return f"blob {digest} stays: {'; '.join(refusals) or 'no registry is known to have it'}"
        return ""

    def _ask(self, digest: Digest, size: int, name: str) -> str:
        known = self._answers.get((digest, name))
        if known is None:
            known = self._answers[digest, name] = self._look(digest, size, name)
        return known

    def _look(self, digest: Digest, size: int, name: str) -> str:
        try:
            repository = Reference.parse(name)
            if repository.host in self._silent:
                return self._silent[repository.host]
            found = self._registry.repository(repository).stat(digest)
        except (Cancelled, Closed):
            raise
        except ConnectionFailed as error:
            self._silent[repository.host] = str(error)
            return str(error)
        except BlobteeError as error:
            return str(error)
        if found is None:
            return f"{name} does not have it any more"
        return "" if found == size else f"{name} has {found} bytes of that name, not {size}"
