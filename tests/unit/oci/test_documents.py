from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobtee.errors import BlobteeError, InvalidDocument, NotFound, TooLarge, UnsupportedMediaType
from blobtee.oci import Descriptor, Digest, Index, Manifest, Platform, documents, mediatypes, parse_document
from blobtee.oci.documents import parse_config

A, B = Digest.of(b"a"), Digest.of(b"b")


def descriptor(digest: str = A, **more: Any) -> dict[str, Any]:
    return {"mediaType": mediatypes.OCI_LAYER, "digest": digest, "size": 3, **more}


def manifest(**more: Any) -> dict[str, Any]:
    value = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": descriptor(B),
        "layers": [descriptor()],
    }
    return {**value, **more}


def index(*platforms: str | None, **more: Any) -> dict[str, Any]:
    manifests = [
        descriptor(Digest.of(str(n).encode()), **({"platform": Platform.parse(text).to_json()} if text else {}))
        for n, text in enumerate(platforms)
    ]
    return {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": manifests, **more}


def raw(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_manifests_bytes_are_kept_as_they_came() -> None:
    text = raw(manifest(futureField={"x": [1, 2]}, annotations={"k": "v"})).replace(b": ", b" :\n\t")
    document = parse_document(text)
    assert isinstance(document, Manifest)
    assert document.raw is text
    assert document.digest == Digest.of(text)
    assert document.descriptor == Descriptor(mediatypes.OCI_MANIFEST, Digest.of(text), len(text))
    assert document.json["futureField"] == {"x": [1, 2]}
    assert document.annotations == {"k": "v"}
    assert [layer.digest for layer in document.layers] == [A]
    assert [blob.digest for blob in document.blobs] == [B, A]


def test_blobs_are_named_once() -> None:
    document = parse_document(raw(manifest(layers=[descriptor(), descriptor(B), descriptor()])))
    assert isinstance(document, Manifest)
    assert len(document.layers) == 3
    assert [blob.digest for blob in document.blobs] == [B, A]


def test_artifacts_say_their_type_and_subject() -> None:
    plain = parse_document(raw(manifest()))
    other = parse_document(raw(manifest(artifactType="application/x-sbom", subject=descriptor())))
    assert isinstance(plain, Manifest)
    assert isinstance(other, Manifest)
    assert (plain.artifact_type, plain.subject) == (mediatypes.OCI_LAYER, None)
    assert other.artifact_type == "application/x-sbom"
    assert other.subject is not None
    assert other.subject.digest == A


@pytest.mark.parametrize(
    ("stated", "announced", "kind"),
    [
        (mediatypes.DOCKER_MANIFEST, "", mediatypes.DOCKER_MANIFEST),
        (None, mediatypes.DOCKER_MANIFEST, mediatypes.DOCKER_MANIFEST),
        (None, "", mediatypes.OCI_MANIFEST),
        (None, "application/json", mediatypes.OCI_MANIFEST),
        (mediatypes.OCI_MANIFEST, "text/plain; charset=utf-8", mediatypes.OCI_MANIFEST),
    ],
)
def test_the_type_comes_from_the_document_then_from_outside_then_from_its_members(
    stated: str | None, announced: str, kind: str
) -> None:
    value = manifest(mediaType=stated)
    if stated is None:
        del value["mediaType"]
    assert parse_document(raw(value), announced).media_type == kind


def test_an_index_selects_the_best_platform_and_the_first_of_equals() -> None:
    document = parse_document(raw(index("linux/arm64", "linux/amd64", "linux/amd64/v3", "linux/amd64", None)))
    assert isinstance(document, Index)
    assert document.select(Platform.parse("linux/amd64")).digest == Digest.of(b"1")
    assert document.select(Platform.parse("linux/amd64/v4")).digest == Digest.of(b"2")
    with pytest.raises(NotFound, match="linux/amd64, linux/amd64/v3, linux/arm64"):
        document.select(Platform.parse("linux/s390x"))


def test_a_single_manifest_without_a_platform_is_selected() -> None:
    document = parse_document(raw(index(None)))
    assert isinstance(document, Index)
    assert document.select(Platform.parse("linux/riscv64")).digest == Digest.of(b"0")
    empty = parse_document(raw(index()))
    assert isinstance(empty, Index)
    with pytest.raises(NotFound):
        empty.select(Platform.current())


def test_a_document_that_is_two_things_is_refused() -> None:
    with pytest.raises(InvalidDocument, match="at once"):
        parse_document(raw({**manifest(), **index()}))
    with pytest.raises(InvalidDocument, match="announced"):
        parse_document(raw(manifest()), mediatypes.OCI_INDEX)
    for value in ({"schemaVersion": 1, "fsLayers": []}, manifest(mediaType=next(iter(mediatypes.DOCKER_SCHEMA1)))):
        with pytest.raises(UnsupportedMediaType, match="schema 1"):
            parse_document(raw(value))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"a":',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        raw({}),
        raw({"mediaType": "text/plain"}),
        raw({"mediaType": 7}),
        raw(manifest(layers={})),
        raw(manifest(layers=[1])),
        raw(manifest(config=None)),
        raw(manifest(config=[])),
        raw(manifest(layers=[descriptor("sha256:x")])),
        raw(manifest(layers=[descriptor(size=-1)])),
        raw(manifest(layers=[descriptor(size=2**63)])),
        raw(manifest(layers=[descriptor(size=1.5)])),
        raw(manifest(layers=[descriptor(size=True)])),
        raw(manifest(layers=[descriptor(size="3")])),
        raw(manifest(layers=[descriptor(urls="x")])),
        raw(manifest(layers=[descriptor(urls=[1])])),
        raw(manifest(layers=[descriptor(annotations=["x"])])),
        raw(manifest(layers=[descriptor(annotations={"a": 1})])),
        raw(manifest(layers=[descriptor(mediaType=1)])),
        raw(manifest(layers=[descriptor(data="%%%")])),
        raw(manifest(layers=[descriptor(data=1)])),
        raw(manifest(layers=[descriptor(data="é")])),
        raw(manifest(layers=[descriptor(platform="linux")])),
        raw(manifest(layers=[descriptor(platform={"os": 1})])),
        raw(index(manifests="x")),
        b'{"config": {"size": ' + b"9" * 10_000 + b"}}",
    ],
)
def test_hostile_json_ends_in_our_errors(text: bytes) -> None:
    with pytest.raises(BlobteeError):
        parse_document(text)


def test_documents_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 1000)
    with pytest.raises(TooLarge):
        parse_document(raw(manifest()) + b" " * 1000)
    monkeypatch.undo()
    monkeypatch.setattr(documents, "MAX_LAYERS", 2)
    with pytest.raises(TooLarge):
        parse_document(raw(manifest(layers=[descriptor()] * 3)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
members = st.sampled_from(
    ["mediaType", "config", "layers", "manifests", "annotations", "schemaVersion", "digest", "size", "data", "platform"]
)


@given(st.sampled_from(["manifest", "index", "layer"]), members, json_values)
def test_any_member_may_be_anything(where: str, member: str, value: object) -> None:
    document: dict[str, Any] = {
        "manifest": lambda: manifest(**{member: value}),
        "index": lambda: index("linux/amd64", **{member: value}),
        "layer": lambda: manifest(layers=[{**descriptor(), member: value}]),
    }[where]()
    try:
        parsed = parse_document(raw(document))
    except BlobteeError:
        return
    assert parsed.raw == raw(document)


def test_a_descriptor_keeps_what_it_does_not_know() -> None:
    value = descriptor(
        urls=["https://x/y"],
        annotations={"a": "b"},
        data="YWJj",
        platform={"architecture": "amd64", "os": "linux"},
        artifactType="application/x",
        futureField=[1, {"x": None}],
    )
    desc = Descriptor.from_json(value)
    assert desc.to_json() == value
    assert desc.data == b"abc"
    assert desc.annotated({"c": "d"}).annotations == {"a": "b", "c": "d"}
    assert desc.annotations == {"a": "b"}
    assert desc.bare().to_json() == descriptor()
    assert len({desc, Descriptor.from_json(value)}) == 1


def test_a_config_lists_its_diff_ids() -> None:
    config = parse_config(raw({"os": "linux", "architecture": "arm64", "rootfs": {"diff_ids": [A, B]}, "more": 1}))
    assert config.diff_ids == (A, B)
    assert str(config.platform) == "linux/arm64"
    broken: list[object] = [None, [], {}, {"diff_ids": "x"}, {"diff_ids": [1]}, {"diff_ids": ["sha256:x"]}]
    for rootfs in broken:
        with pytest.raises(BlobteeError):
            _ = parse_config(raw({"rootfs": rootfs})).diff_ids
