"""`grpc.health.v1`: the standard health check."""

from __future__ import annotations

from blobtee.wire.table import build

PACKAGE = "grpc.health.v1"
SERVICE = f"{PACKAGE}.Health"

UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)
"""`status` of a `HealthCheckResponse`. The last is for `Watch` alone: `Check` answers NOT_FOUND instead."""

messages = build(
    PACKAGE,
    {"HealthCheckRequest": {"service": (1, "string")}, "HealthCheckResponse": {"status": (1, "ServingStatus")}},
    {
        "ServingStatus": {
            "UNKNOWN": UNKNOWN,
            "SERVING": SERVING,
            "NOT_SERVING": NOT_SERVING,
            "SERVICE_UNKNOWN": SERVICE_UNKNOWN,
        }
    },
)
