"""Says what the C core found, and checks a few known answers."""

from __future__ import annotations

from blobtee.core import Sha256, cpu_features, crc32c, gunzip, gzip_member, library_versions, sha256_many
from blobtee.errors import Internal


def _check_answers() -> None:
    """Known answers on every implementation in use; Internal when one is wrong."""
    million = b"a" * 1_000_000
    digest = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"  # FIPS 180-2, appendix B.3
    right = (
        Sha256(million).hexdigest() == digest
        and [found.hex() for found in sha256_many([million] * 5)] == [digest] * 5
        and crc32c(b"123456789") == 0xE3069283
        and gunzip(gzip_member(million) * 2, max_output=2_000_000) == million * 2
    )
    if not right:
        raise Internal("blobtee.core: a known answer came out wrong")


def _main() -> None:
    _check_answers()
    features = cpu_features()
    print(f"SHA-256: {features.sha256}, {features.sha256_lanes} lanes; CRC-32C: {features.crc32c}")
    print("CPU found:", *sorted(features.found))
    print("CPU allowed:", *sorted(features.allowed))
    print("libraries:", *(f"{name} {version}" for name, version in library_versions().items()))
    print("known answers are right")


if __name__ == "__main__":
    _main()
