from __future__ import annotations

import pytest
from google.protobuf import timestamp_pb2

from blobtee.wire.content import COMMIT, messages
from blobtee.wire.table import common


def test_bytes_on_the_wire_are_those_of_protobuf() -> None:
    request = messages.WriteContentRequest(action=COMMIT, ref="r", total=300, data=b"\xff", labels={"k": "v"})
    assert request.SerializeToString() == b"\x08\x02\x12\x01r\x18\xac\x02\x32\x01\xff\x3a\x06\n\x01k\x12\x01v"
    assert messages.WriteContentRequest.FromString(request.SerializeToString()) == request


def test_common_messages_are_those_that_everybody_has() -> None:
    theirs = timestamp_pb2.Timestamp(seconds=1, nanos=2)
    assert common.Timestamp.FromString(theirs.SerializeToString()) == common.Timestamp(seconds=1, nanos=2)


def test_unknown_fields_are_no_error() -> None:
    assert messages.InfoRequest.FromString(b"\x0a\x01x\x7a\x01y").digest == "x"


def test_fields_have_types() -> None:
    with pytest.raises(TypeError):
        messages.Info(size="many")
