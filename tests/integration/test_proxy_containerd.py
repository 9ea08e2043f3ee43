"""The conformance suite on a running containerd, both versions, with the store that they bring themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from blobtee.content.proxy import ProxyStore
from tests.conformance.test_concurrency import *  # noqa: F403
from tests.conformance.test_managing import *  # noqa: F403
from tests.conformance.test_reading import *  # noqa: F403
from tests.conformance.test_writing import *  # noqa: F403
from tests.integration.daemons import Containerd, running_containerd

# Who comes first builds containerd.
pytestmark = [pytest.mark.xdist_group("containerd"), pytest.mark.timeout(1200)]

_count = itertools.count()

_TIMES = "updated_at is that of the file, which opening and closing touch; to who writes it is that of the opening"
_TOTAL = "a total that is said later is of the stream alone"
_DIGEST = "the digest so far is always SHA-256"
_NONSENSE = "an ingest is made before the digest is looked at"
OTHERWISE = {
    "1.6": {
        "test_sha384_and_sha512_name_blobs_too": _DIGEST,
        "test_a_commit_may_ask_for_another_algorithm_than_the_opening": "blobs are named by SHA-256 alone",
    },
    "2": {"test_sha384_and_sha512_name_blobs_too": _DIGEST},
    "both": {
        "test_opening_again_resumes_with_the_bytes_the_digest_and_the_times": _TIMES,
        "test_status_tells_offset_total_and_times": _TIMES,
        "test_a_total_that_is_not_said_again_stays": _TOTAL,
        "test_resuming_under_another_algorithm_hashes_what_is_there": _DIGEST,
        "test_a_refused_opening_leaves_no_ingest": _NONSENSE,
    },
}
"""Where containerd's own store is not as the content specification wants one, whoever asks it."""


@pytest.fixture(scope="module", params=["1.6", "2"])
def containerd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    folder = tmp_path_factory.mktemp("containerd")
    with running_containerd(folder, request.param, None) as daemon:
        yield daemon


@pytest.fixture
def store(request: pytest.FixtureRequest, containerd: Containerd) -> Iterator[ProxyStore]:
    version = request.node.callspec.params["containerd"]
    if reason := {**OTHERWISE["both"], **OTHERWISE[version]}.get(request.node.originalname):
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    namespace = f"test-{next(_count)}"
    # Without a lease containerd's collector takes what a test still reads.
    lease = containerd.do("-n", namespace, "leases", "create").strip()
    with ProxyStore(containerd.address, namespace=namespace, lease=lease) as store:
        yield store
