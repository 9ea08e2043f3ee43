"""`containerd.services.content.v1`: fields and methods of containerd's published API (`spec/content.md` section 2).

All message classes are attributes of `messages`.
"""

from __future__ import annotations

from blobtee.wire.table import build

PACKAGE = "containerd.services.content.v1"
SERVICE = f"{PACKAGE}.Content"

STAT, WRITE, COMMIT = range(3)
"""`action` of a `WriteContentRequest`."""

MAX_DATA = 1 << 20
"""Bytes of data in one message of an answer to `Read`."""

MAX_MESSAGE = (16 << 20) + (64 << 10)
"""Bytes of the largest message that is taken: containerd sends up to 16 MiB of data, and what goes with it."""

messages = build(
    PACKAGE,
    {
        "Info": {
            "digest": (1, "string"),
            "size": (2, "int64"),
            "created_at": (3, "google.Timestamp"),
            "updated_at": (4, "google.Timestamp"),
            "labels": (5, "map"),
        },
        "InfoRequest": {"digest": (1, "string")},
        "InfoResponse": {"info": (1, "Info")},
        "UpdateRequest": {"info": (1, "Info"), "update_mask": (2, "google.FieldMask")},
        "UpdateResponse": {"info": (1, "Info")},
        "ListContentRequest": {"filters": (1, "repeated string")},
        "ListContentResponse": {"info": (1, "repeated Info")},
        "DeleteContentRequest": {"digest": (1, "string")},
        "ReadContentRequest": {"digest": (1, "string"), "offset": (2, "int64"), "size": (3, "int64")},
        "ReadContentResponse": {"offset": (1, "int64"), "data": (2, "bytes")},
        "Status": {
            "started_at": (1, "google.Timestamp"),
            "updated_at": (2, "google.Timestamp"),
            "ref": (3, "string"),
            "offset": (4, "int64"),
            "total": (5, "int64"),
            "expected": (6, "string"),
        },
        "StatusRequest": {"ref": (1, "string")},
        "StatusResponse": {"status": (1, "Status")},
        "ListStatusesRequest": {"filters": (1, "repeated string")},
        "ListStatusesResponse": {"statuses": (1, "repeated Status")},
        "WriteContentRequest": {
            "action": (1, "WriteAction"),
            "ref": (2, "string"),
            "total": (3, "int64"),
            "expected": (4, "string"),
            "offset": (5, "int64"),
            "data": (6, "bytes"),
            "labels": (7, "map"),
        },
        "WriteContentResponse": {
            "action": (1, "WriteAction"),
            "started_at": (2, "google.Timestamp"),
            "updated_at": (3, "google.Timestamp"),
            "offset": (4, "int64"),
            "total": (5, "int64"),
            "digest": (6, "string"),
        },
        "AbortRequest": {"ref": (1, "string")},
    },
    {"WriteAction": {"STAT": STAT, "WRITE": WRITE, "COMMIT": COMMIT}},
)
