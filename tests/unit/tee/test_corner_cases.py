"""The corner cases of `spec/tee.md` section 5, and the test of each; those of crashes are in `test_keeping.py`,
`test_losses.py` and the integration tests."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.unit.tee import test_keeping as keeping
from tests.unit.tee import test_over_http as http
from tests.unit.tee import test_reading as reading

TOLD = "test_a_host_that_answers_a_range_with_everything_is_asked_once"
REFUSED = "test_an_answer_that_is_not_what_was_asked_for_is_refused_and_leaves_nothing"
COUNTED = "test_a_body_without_a_length_is_counted"
REDIRECTS = "test_redirects_are_followed_and_remembered"
EARLY = "test_a_body_that_ends_early_is_gone_on_with"
ANY_SIZE = "test_blobs_of_any_size_over_http"
FAR = "test_reads_past_4_gib"
LIES = "test_a_descriptor_that_lies_about_the_size"
OPEN = "test_a_reader_that_is_open_when_the_blob_is_promoted_or_evicted_reads_on"

CASES: list[tuple[str, ModuleType, str, str]] = [
    # what the list says · where · the test · which of its cases, where it has several
    ("200 at offset 0", http, TOLD, "200 at offset 0"),
    ("200 above offset 0", http, TOLD, "200 at an offset above 0"),
    ("200 only on the nth part", http, "test_200_on_the_third_part_only", ""),
    ("206 with a wrong start", http, REFUSED, "206 with a wrong start"),
    ("206 with a short end", http, REFUSED, "206 with a short end"),
    ("206 with `*` as total", http, REFUSED, "206 of an unknown total"),
    ("206 with another total", http, REFUSED, "206 of another total"),
    ("two Content-Range headers", http, REFUSED, "two Content-Range headers"),
    ("multipart answer", http, REFUSED, "multipart answer"),
    ("no length", http, COUNTED, "no length"),
    ("gzip encoding", http, REFUSED, "gzip encoding"),
    ("HEAD refused", http, "test_head_is_not_needed", ""),
    ("307 chains", http, REDIRECTS, "307 chains"),
    ("relative Location", http, REDIRECTS, "relative Location"),
    ("URL expires mid-body", http, "test_a_url_that_expires_while_its_body_comes", ""),
    ("URL expires between reads", http, "test_a_url_that_expires_between_reads", ""),
    ("token expires while queued", http, "test_a_token_that_expires_while_its_request_waits_in_line", ""),
    (
        "session A closes while B waits",
        http,
        "test_a_session_that_closes_while_another_waits_for_what_it_fetches",
        "",
    ),
    ("a stall without a close", http, EARLY, "a stall without a close"),
    ("EOF one byte early", http, EARLY, "EOF one byte early"),
    ("bytes after the end", http, "test_bytes_after_the_end_are_nobodys", ""),
    *((f"size {size}", http, ANY_SIZE, f"{size} bytes") for size in (0, 1, 65535, 65536, 65537, 131071, 131073)),
    ("past 4 GiB", http, FAR, "past 4 GiB"),
    ("across 4 GiB", http, FAR, "across 4 GiB"),
    ("a descriptor that lies", http, LIES, "a descriptor that lies by 1 bytes"),
    ("a descriptor that lies about the digest", http, "test_a_descriptor_that_lies_about_the_digest", ""),
    ("100 readers of one chunk make one GET", http, "test_a_hundred_readers_of_one_chunk_make_one_get", ""),
    (
        "a reader cancelled while others wait",
        http,
        "test_a_reader_who_gives_up_ends_the_request_for_nobody_else",
        "",
    ),
    ("a reader open across promotion", http, OPEN, "promotion"),
    ("a reader open across eviction", http, OPEN, "eviction"),
    (
        "a reader open across mismatch",
        http,
        "test_a_reader_that_is_open_when_the_blob_turns_out_to_be_wrong_gets_no_more_of_it",
        "",
    ),
    (
        "two processes, one killed while holding a lease",
        keeping,
        "test_a_killed_process_leaves_what_it_had_and_its_claims_to_others",
        "",
    ),
    ("`raw` bytes never satisfy a stricter reader", http, "test_raw_bytes_are_for_nobody_who_asked_for_more", ""),
    ("the end of a wrong blob", reading, "test_the_end_of_a_wrong_blob_is_not_reached_by_streaming", ""),
    ("a bad mirror, then a good one", http, "test_a_bad_mirror_then_a_good_one", "wrong bytes"),
]


@pytest.mark.parametrize(("module", "name", "case"), [each[1:] for each in CASES], ids=[each[0] for each in CASES])
def test_the_case_has_its_test(module: ModuleType, name: str, case: str) -> None:
    test: Callable[..., object] = getattr(module, name)
    assert not case or case in {each for mark in getattr(test, "pytestmark", ()) for each in ids_of(mark)}


def ids_of(mark: pytest.Mark) -> list[Any]:
    if mark.name != "parametrize":
        return []
    ids = mark.kwargs.get("ids", str)
    return [ids(value) for value in mark.args[1]] if callable(ids) else list(ids)
