"""New documents for layers that were packed anew."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from blobtee.cache.labels import TOC_DIGEST, UNCOMPRESSED, UNCOMPRESSED_SIZE
from blobtee.oci import Descriptor, Digest, Index, Manifest, Platform, mediatypes, parse_document
from blobtee.oci.documents import parse_config
from blobtee.testing import ImageSource, image, index
from blobtee.testing.images import Files
from blobtee.transfer.rewriting import REFERENCE_DIGEST, Plan, Rewritten, described, exported, rewrite

FILES: list[Files] = [{"a": b"a" * 500}, {"b": b"b" * 500}]
ZSTD = mediatypes.OCI_LAYER + "+zstd"
OTHER = Digest(f"sha256:{'7' * 64}")


def manifest_of(source: ImageSource) -> Manifest:
    document = parse_document(source.manifest)
    assert isinstance(document, Manifest)
    return document


def plan(source: ImageSource, **new: Descriptor) -> Plan:
    """The image's layers, those named by their number (`_0`) replaced."""
    layers = list(manifest_of(source).layers)
    for number, desc in new.items():
        layers[int(number[1:])] = desc
    return Plan(parse_config(source.config), layers)


def converted(diff_id: str, **annotations: str) -> Descriptor:
    return Descriptor(ZSTD, OTHER, 77, annotations={UNCOMPRESSED: diff_id, **annotations})


def one(source: ImageSource, planned: Plan, epoch: int | None = None) -> tuple[Manifest, dict[str, Any], Rewritten]:
    """The image rewritten: its manifest and config."""
    manifest = manifest_of(source)
    done = rewrite([manifest], {manifest.digest: planned}, epoch)
    new = done.documents[-1]
    assert isinstance(new, Manifest)
    raw = done.blobs.get(new.config.digest, source.config)
    assert (Digest.of(raw), len(raw)) == (new.config.digest, new.config.size)
    return new, json.loads(raw), done


def test_what_does_not_change_keeps_its_bytes() -> None:
    source = image(FILES, docker=True)
    new, _, done = one(source, plan(source))
    assert new.raw == source.manifest
    assert done.blobs == {}


def test_one_new_layer_makes_the_image_oci_and_leaves_the_other_layer() -> None:
    source = image(FILES, docker=True, annotations={"note": "kept"})
    diff_id = source.layers[1].diff_id
    new, config, _ = one(source, plan(source, _1=converted(diff_id)))
    assert (new.media_type, new.config.media_type) == (mediatypes.OCI_MANIFEST, mediatypes.OCI_CONFIG)
    assert new.json["mediaType"] == mediatypes.OCI_MANIFEST
    first, second = new.layers
    assert first == replace(source.layers[0].descriptor, media_type=mediatypes.OCI_LAYER + "+gzip")
    assert second == Descriptor(ZSTD, OTHER, 77)
    assert new.annotations == {"note": "kept"}
    assert config == json.loads(source.config), "a diff id that stays changes nothing in the config"
    assert new.config.digest == manifest_of(source).config.digest


def test_a_new_diff_id_goes_into_the_config() -> None:
    source = image(FILES)
    _, config, _ = one(source, plan(source, _0=converted(OTHER)))
    assert config["rootfs"]["diff_ids"] == [OTHER, source.layers[1].diff_id]
    assert config["history"] == json.loads(source.config)["history"]


def test_annotations_of_the_old_bytes_go_and_others_stay() -> None:
    source = image(FILES)
    raw = json.loads(source.manifest)
    raw["layers"][0]["annotations"] = {
        TOC_DIGEST: "old",
        UNCOMPRESSED_SIZE: "1",
        "io.github.containers.zstd-chunked.manifest-checksum": "old",
        "org.example/title": "kept",
    }
    manifest = parse_document(json.dumps(raw).encode())
    assert isinstance(manifest, Manifest)
    layers = [converted(OTHER, **{TOC_DIGEST: "new", "buildkit/createdat": "x"}), manifest.layers[1]]
    done = rewrite([manifest], {manifest.digest: Plan(parse_config(source.config), layers)})
    new = done.documents[0]
    assert isinstance(new, Manifest)
    assert new.layers[0].annotations == {"org.example/title": "kept", TOC_DIGEST: "new"}
    assert new.layers[1] == manifest.layers[1]


def test_an_epoch_clamps_the_times_of_a_config_and_nothing_else() -> None:
    history = [{"created": "2030-01-01T00:00:00.5Z"}, {"created": "1999-12-31T00:00:00Z"}, {"created": None}, {}]
    source = image(FILES, config={"created": "2020-06-01T12:00:00+02:00", "history": history})
    new, config, _ = one(source, plan(source), epoch=1_000_000_000)
    moment = "2001-09-09T01:46:40Z"
    assert config["created"] == moment
    assert config["history"] == [{"created": moment}, *history[1:]]
    assert new.layers == manifest_of(source).layers
    for odd in ("yesterday", 7, None):
        source = image(FILES, config={"created": odd, "history": "odd"})
        assert one(source, plan(source), epoch=1)[0].raw == source.manifest


def with_attestation(images: dict[str, ImageSource]) -> tuple[Index, list[Manifest]]:
    """An index of images, and for each an attestation in BuildKit's manner."""
    members, documents = [], []
    for name, source in images.items():
        manifest = manifest_of(source)
        platform = Platform.parse(name)
        statement = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": mediatypes.OCI_MANIFEST,
                "config": {"mediaType": mediatypes.OCI_CONFIG, "digest": Digest.of(name.encode()), "size": 2},
                "layers": [{"mediaType": "application/vnd.in-toto+json", "digest": OTHER, "size": 2}],
            }
        ).encode()
        attestation = parse_document(statement)
        assert isinstance(attestation, Manifest)
        members.append({**attestation.descriptor.to_json(), "annotations": {REFERENCE_DIGEST: manifest.digest}})
        members.append({**manifest.descriptor.to_json(), "platform": platform.to_json(), "annotations": {"n": name}})
        documents += [attestation, manifest]
    raw = json.dumps({"schemaVersion": 2, "manifests": members, "annotations": {"of": "index"}}).encode()
    document = parse_document(raw)
    assert isinstance(document, Index)
    return document, documents


def test_an_index_names_the_new_image_and_drops_what_vouched_for_the_old() -> None:
    amd64, arm64 = image(FILES), image([{"other": b"x"}])
    root, manifests = with_attestation({"linux/amd64": amd64, "linux/arm64": arm64})
    done = rewrite(
        [*manifests, root],
        {
            amd64.descriptor.digest: plan(amd64, _0=converted(OTHER)),
            arm64.descriptor.digest: plan(arm64),
        },
    )
    new = done.documents[-1]
    assert isinstance(new, Index)
    assert [document.digest for document in done.documents[:-1]] == [
        new.manifests[0].digest,
        manifests[2].digest,
        arm64.descriptor.digest,
    ]
    assert new.manifests[1:] == root.manifests[2:], "the unchanged image keeps its attestation"
    first = new.manifests[0]
    assert (first.platform, first.annotations) == (Platform.parse("linux/amd64"), {"n": "linux/amd64"})
    assert first.digest == done.documents[0].digest != amd64.descriptor.digest
    assert first.size == len(done.documents[0].raw)
    assert [desc.digest for desc in done.dropped] == [manifests[0].digest]
    assert (new.annotations, new.media_type) == ({"of": "index"}, mediatypes.OCI_INDEX)


def test_an_index_nothing_of_which_changes_keeps_its_bytes() -> None:
    root, manifests = with_attestation({"linux/amd64": image(FILES)})
    done = rewrite([*manifests, root], {manifests[1].digest: plan(image(FILES))})
    assert done.documents == [*manifests, root]
    assert done.dropped == ()


def test_a_referrer_of_a_changed_image_is_dropped_too_and_one_of_another_stays() -> None:
    source, other = image(FILES), image([{"x": b""}])
    referrers = []
    for subject in (source.descriptor, other.descriptor):
        value = {
            "schemaVersion": 2,
            "mediaType": mediatypes.OCI_MANIFEST,
            "artifactType": "text/x",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest.of(b"{}"), "size": 2},
            "layers": [],
            "subject": subject.to_json(),
        }
        document = parse_document(json.dumps(value).encode())
        assert isinstance(document, Manifest)
        referrers.append(document)
    manifest = manifest_of(source)
    members = [document.descriptor.to_json() for document in (*referrers, manifest)]
    root = parse_document(json.dumps({"schemaVersion": 2, "manifests": members}).encode())
    done = rewrite([*referrers, manifest, root], {manifest.digest: plan(source, _1=converted(OTHER))})
    assert [document.digest for document in done.documents[:-1]] == [
        referrers[1].digest,
        done.documents[1].digest,
    ]
    assert [desc.digest for desc in done.dropped] == [referrers[0].digest]


def test_an_index_in_an_index_is_rewritten_with_it() -> None:
    source = image(FILES)
    inner = index({"linux/amd64": source})
    inner_document = parse_document(inner.manifest)
    outer = parse_document(
        json.dumps({"schemaVersion": 2, "manifests": [inner_document.descriptor.to_json()]}).encode()
    )
    manifest = manifest_of(source)
    done = rewrite([manifest, inner_document, outer], {manifest.digest: plan(source, _0=converted(OTHER))})
    new_manifest, new_inner, new_outer = done.documents
    assert isinstance(new_inner, Index)
    assert isinstance(new_outer, Index)
    assert new_outer.manifests[0].digest == new_inner.digest
    assert new_inner.manifests[0].digest == new_manifest.digest


def test_layers_go_into_a_manifest_without_what_concerns_only_us() -> None:
    desc = Descriptor(
        mediatypes.DOCKER_LAYER + ".gzip",
        OTHER,
        5,
        annotations={
            UNCOMPRESSED: OTHER,
            "containerd.io/distribution.source.x": "y",
            "buildkit/createdat": "now",
            TOC_DIGEST: "toc",
            UNCOMPRESSED_SIZE: "9",
        },
    )
    wanted = Descriptor(
        mediatypes.OCI_LAYER + "+gzip", OTHER, 5, annotations={TOC_DIGEST: "toc", UNCOMPRESSED_SIZE: "9"}
    )
    assert exported(desc) == wanted
    manifest, raw = described([desc], None)
    assert manifest.layers == (wanted,)
    assert parse_config(raw).diff_ids == (OTHER,)
