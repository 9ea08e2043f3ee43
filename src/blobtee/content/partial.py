"""Reading by trust from any provider."""

from __future__ import annotations

import inspect
from typing import cast

from blobtee.content.api import PartialProvider, Provider, ReaderAt
from blobtee.content.trust import Trust
from blobtee.oci import Descriptor


def reader_at(provider: Provider | PartialProvider, desc: Descriptor, trust: Trust) -> ReaderAt:
    """A reader whose bytes satisfy `trust`, and no more has to be brought than that asks for.

    Who knows nothing of trust has blobs whole. Errors are the provider's.
    """
    if "trust" in inspect.signature(provider.reader_at).parameters:
        return cast(PartialProvider, provider).reader_at(desc, trust)
    return provider.reader_at(desc)
