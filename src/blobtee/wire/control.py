"""`blobtee.control.v1`: what a server of ours is asked beside the content service, on the same socket."""

from __future__ import annotations

from blobtee.wire.table import build

PACKAGE = "blobtee.control.v1"
SERVICE = f"{PACKAGE}.Control"

messages = build(
    PACKAGE,
    {
        "PullRequest": {"image": (1, "string"), "platform": (2, "string")},
        "Layer": {"digest": (1, "string"), "size": (2, "int64"), "media_type": (3, "string")},
        "PullResponse": {
            "name": (1, "string"),
            "digest": (2, "string"),
            "media_type": (3, "string"),
            "platform": (4, "string"),
            "layers": (5, "repeated Layer"),
        },
    },
)
