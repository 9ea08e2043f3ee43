"""What is told of a registry's refusal."""

from __future__ import annotations

import pytest

from blobtee.registry import Settings
from blobtee.registry.problems import problem


class Refused:
    status = 403

    def __init__(self, body: bytes) -> None:
        self._body = body

    def headers(self, name: str) -> list[str]:
        return []

    def read(self, limit: int) -> bytes:
        return self._body[:limit]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "body",
    [
        b"you sent Authorization: Basic dXNlcjpodW50ZXIy, which is wrong",
        b'{"errors": [{"code": "DENIED", "message": "bad header \'bearer dXNlcjpodW50ZXIy\'"}]}',
        b'{"message": "Bearer\\tdXNlcjpodW50ZXIy"}',
    ],
)
def test_a_registry_that_repeats_our_secret_does_not_get_it_into_the_message(body: bytes) -> None:
    told = str(problem(Refused(body), "read team/app", Settings()))
    assert "cannot read team/app" in told
    assert "…" in told
    assert "dXNlcjpodW50ZXIy" not in told
