from __future__ import annotations

import pytest

from blobtee.compression import Compression, Type, detect, from_media_type
from blobtee.errors import InvalidArgument, UnsupportedMediaType
from blobtee.oci import Compressed


def test_a_wish_has_the_ecosystems_defaults() -> None:
    assert Compression() == Compression("gzip", force=False, level=None)
    assert Compression("zstd", force=True, level=3) == Compression(Type.ZSTD, force=True, level=3)
    assert [Compression(kind).effective_level for kind in Type] == [None, 6, 6, 3]
    assert Compression("gzip", level=-1) == Compression("gzip")
    assert Compression("zstd", level=19).effective_level == 19


@pytest.mark.parametrize(
    ("kind", "level"),
    [("brotli", None), ("", None), ("gzip", 13), ("gzip", -2), ("zstd", 0), ("zstd", 23), ("uncompressed", 1)],
)
def test_wishes_that_make_no_sense_are_refused(kind: str, level: int | None) -> None:
    with pytest.raises(InvalidArgument):
        Compression(kind, level=level)


def test_a_level_is_a_whole_number() -> None:
    for level in (True, "3", 1.5):
        with pytest.raises(InvalidArgument):
            Compression("gzip", level=level)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attributes", "wish"),
    [
        ({}, Compression()),
        ({"compression": "zstd"}, Compression("zstd")),
        ({"compression": "estargz", "force-compression": ""}, Compression("estargz", force=True)),
        ({"compression": "uncompressed", "force-compression": "False"}, Compression("uncompressed")),
        ({"force-compression": "T"}, Compression("gzip", force=True)),
        ({"force-compression": "0"}, Compression("gzip")),
        ({"compression": "zstd", "compression-level": "19"}, Compression("zstd", level=19)),
        ({"compression-level": "+9", "force-compression": "1"}, Compression("gzip", force=True, level=9)),
        ({"compression": "uncompressed", "compression-level": "-1"}, Compression("uncompressed")),
        ({"oci-mediatypes": "maybe", "name": "example.com/image"}, Compression()),
    ],
)
def test_wishes_come_as_attributes(attributes: dict[str, str], wish: Compression) -> None:
    assert Compression.from_attributes(attributes) == wish


@pytest.mark.parametrize("value", ["1", "t", "T", "true", "TRUE", "True"])
def test_truth_has_these_spellings(value: str) -> None:
    assert Compression.from_attributes({"force-compression": value}).force
    with pytest.raises(InvalidArgument, match="force-compression"):
        Compression.from_attributes({"force-compression": value + " "})


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"compression": ""}, "compression"),
        ({"compression": "GZIP"}, "compression"),
        ({"compression": "brotli"}, "brotli"),
        ({"force-compression": "yes"}, "force-compression"),
        ({"force-compression": "tRUE"}, "force-compression"),
        ({"compression-level": ""}, "compression-level"),
        ({"compression-level": "3.0"}, "compression-level"),
        ({"compression-level": " 3"}, "compression-level"),
        ({"compression-level": "1_0"}, "compression-level"),
        ({"compression-level": "\u0663"}, "compression-level"),
        ({"compression-level": "9" * 5000}, "compression-level"),
        ({"compression-level": "13"}, "levels"),
        ({"compression-level": "-2"}, "levels"),
        ({"compression": "uncompressed", "compression-level": "3"}, "no levels"),
    ],
)
def test_attributes_that_make_no_sense_are_named(attributes: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Compression.from_attributes(attributes)


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        ("application/vnd.oci.image.layer.v1.tar", Type.UNCOMPRESSED),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Type.GZIP),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Type.ZSTD),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Type.GZIP),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Type.GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", Type.ZSTD),
    ],
)
def test_media_types_say_the_type(media_type: str, kind: Type) -> None:
    assert from_media_type(media_type) is kind


def test_an_unknown_media_type_is_named() -> None:
    with pytest.raises(UnsupportedMediaType, match="application/x-thing"):
        from_media_type("application/x-thing")


def test_types_have_oci_media_types() -> None:
    assert [from_media_type(kind.media_type) for kind in Type] == [Type.UNCOMPRESSED, Type.GZIP, Type.GZIP, Type.ZSTD]


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        (b"", Compressed.NONE),
        (b"\x1f\x8b\x08\x00", Compressed.GZIP),
        (b"\x1f\x8b\x00\x00", Compressed.NONE),
        (b"\x28\xb5\x2f\xfd", Compressed.ZSTD),
        (b"\x5a\x2a\x4d\x18", Compressed.ZSTD),
        (b"\x28\xb5\x2f", Compressed.NONE),
        (b"etc/", Compressed.NONE),
    ],
)
def test_first_bytes_say_the_type(prefix: bytes, found: Compressed) -> None:
    assert detect(prefix) is found
