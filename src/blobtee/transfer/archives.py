"""Images in single files: OCI layouts in a tar, and what `docker save` writes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from blobtee import tasks
from blobtee.compression import decompress, detect
from blobtee.content import ReaderAt, digester
from blobtee.content.digester import digest_of
from blobtee.content.layout import IMAGE_NAME, INDEX_FILE, LAYOUT_FILE, REF_NAME
from blobtee.errors import DigestMismatch, InvalidDocument, InvalidReference, NotFound, TooLarge
from blobtee.oci import Compressed, Config, Descriptor, Digest, Index, Manifest, Reference, mediatypes, parse_document
from blobtee.oci.documents import MAX_LAYERS
from blobtee.transfer.images import checked, read_config
from blobtee.transfer.layouts import blob_path, read_small, tag_of
from blobtee.transfer.places import Moved, Source, pieces
from blobtee.transfer.tarfiles import TarFiles, TarWriter

_PIECE = 1 << 20
_LAYER_TYPES = {
    Compressed.NONE: mediatypes.OCI_LAYER,
    Compressed.GZIP: f"{mediatypes.OCI_LAYER}+gzip",
    Compressed.ZSTD: f"{mediatypes.OCI_LAYER}+zstd",
}


class OciArchiveSink:
    """A tar with an OCI layout in it."""

    at_once = 1
    single = False

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._tar = TarWriter(path)

    def blob(self, desc: Descriptor, source: Source) -> Moved:
        with source.reader_at(desc) as reader:
            self._tar.add(blob_path(desc.digest), pieces(reader, desc), desc.size)
        return Moved(desc, "copied", desc.size)

    def document(self, document: Manifest | Index) -> None:
        name = blob_path(document.digest)
        if not self._tar.has(name):
            self._tar.add(name, iter([document.raw]), len(document.raw))

    def finish(self, document: Manifest | Index, source: Source) -> str:
        self.document(document)
        name = self._name or tag_of(source.name)
        annotations = {REF_NAME: name}
        if source.name and not self._name:
            annotations[IMAGE_NAME] = source.name
        entry = document.descriptor.annotated(annotations).to_json()
        index = {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": [entry]}
        for path, value in ((INDEX_FILE, index), (LAYOUT_FILE, {"imageLayoutVersion": "1.0.0"})):
            raw = json.dumps(value).encode()
            self._tar.add(path, iter([raw]), len(raw))
        self._tar.finish()
        return f"oci-archive:{self._path}:{name}"

    def __enter__(self) -> OciArchiveSink:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()


class DockerArchiveSource:
    """An image in a tar of `docker save`: a list of images in `manifest.json`, configs, and layers, mostly plain tars.

    The image gets an OCI manifest of its own: layers as they lie there, the config's bytes unchanged.
    """

    def __init__(self, path: Path, wanted: str = "") -> None:
        self._what = str(path)
        self._wanted = wanted
        self._files = TarFiles(path)
        self._name = ""
        self._members: dict[Digest, str] = {}
        self._manifest: Manifest | None = None

    @property
    def name(self) -> str:
        return self._name

    def root(self) -> Descriptor:
        if self._manifest is None:
            self._manifest = self._made()
        return self._manifest.descriptor

    def document(self, desc: Descriptor) -> Manifest | Index:
        self.root()
        if self._manifest is None or desc.digest != self._manifest.digest:
            raise NotFound(f"{self._what}: no manifest {desc.digest}")
        return self._manifest

    def reader_at(self, desc: Descriptor) -> ReaderAt:
        try:
            return self._files.open(self._members[desc.digest])
        except KeyError:
            raise NotFound(f"{self._what}: no blob {desc.digest}") from None

    def repositories(self, desc: Descriptor, host: str) -> Sequence[str]:
        return []

    def __enter__(self) -> DockerArchiveSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def _made(self) -> Manifest:
        config_name, layer_names = self._chosen()
        raw = read_small(self._files, config_name)
        config = Descriptor(mediatypes.OCI_CONFIG, Digest.of(raw), len(raw))
        self._members[config.digest] = config_name
        parsed = Config(raw, mediatypes.OCI_CONFIG, _object(raw, f"{self._what}: {config_name}"))
        diff_ids = parsed.diff_ids
        if len(diff_ids) != len(layer_names):
            raise InvalidDocument(f"{self._what}: {len(layer_names)} layers, but {len(diff_ids)} diff ids")
        layers = [self._layer(name, diff_id) for name, diff_id in zip(layer_names, diff_ids, strict=True)]
        manifest = {
            "schemaVersion": 2,
            "mediaType": mediatypes.OCI_MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        document = parse_document(json.dumps(manifest).encode())
        assert isinstance(document, Manifest)
        return document

    def _chosen(self) -> tuple[str, list[str]]:
        """The config's and the layers' paths of the image that is asked for."""
        raw = read_small(self._files, "manifest.json")
        try:
            images = json.loads(raw)
        except (ValueError, RecursionError):
            raise InvalidDocument(f"{self._what}: manifest.json is not JSON") from None
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            raise InvalidDocument(f"{self._what}: manifest.json must list images")
        known: list[str] = []
        for image in images:
            tags = image.get("RepoTags") or []
            layers = image.get("Layers") or []
            config = image.get("Config")
            if not isinstance(config, str) or not _texts(tags) or not _texts(layers):
                raise InvalidDocument(f"{self._what}: manifest.json has an image without config or layers")
            if len(layers) > MAX_LAYERS:
                raise TooLarge(f"{self._what}: {len(layers)} layers; the limit is {MAX_LAYERS}")
            known += tags
            if self._wanted and not any(_same(self._wanted, tag) for tag in tags):
                continue
            if not self._wanted and len(images) > 1:
                continue
            called = self._wanted or next(iter(tags), "")
            self._name = str(Reference.parse(called)) if called else ""
            return config, layers
        listed = ", ".join(known)[:500] or "images without names"
        reason = f"no image {self._wanted!r}" if self._wanted else "not one image, so name it"
        raise NotFound(f"{self._what}: {reason}; there is: {listed}")

    def _layer(self, name: str, diff_id: Digest) -> Descriptor:
        with self._files.open(name) as reader:
            kind = detect(reader.read_at(0, 512))
            digest = diff_id if kind is Compressed.NONE else _digest(reader)
            self._members[digest] = name
            return Descriptor(_LAYER_TYPES[kind], digest, reader.size)


class DockerArchiveSink:
    """What `docker load` takes: one image, its layers unpacked to plain tars and named by their diff ids."""

    at_once = 1
    single = True

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = str(Reference.parse(name)) if name else ""
        self._tar = TarWriter(path)

    def blob(self, desc: Descriptor, source: Source) -> Moved:
        # Layers are named by diff ids, which only the config tells: everything is written in `finish`.
        return Moved(desc, "copied", desc.size)

    def document(self, document: Manifest | Index) -> None:
        raise InvalidDocument("a docker archive holds no indexes")

    def finish(self, document: Manifest | Index, source: Source) -> str:
        assert isinstance(document, Manifest)
        with source.reader_at(document.config) as reader:
            raw = checked(reader, document.config)
        config = read_config(raw, document)
        layer_names = []
        for layer, diff_id in zip(document.layers, config.diff_ids, strict=True):
            name = f"{diff_id.hex}.tar"
            layer_names.append(name)
            if not self._tar.has(name):
                with source.reader_at(layer) as reader:
                    self._tar.add(name, _unpacked(reader, layer, diff_id))
        config_name = f"{document.config.digest.hex}.json"
        self._tar.add(config_name, iter([raw]), len(raw))
        tags = [tag] if (tag := self._name or _docker_tag(source.name)) else []
        listing = json.dumps([{"Config": config_name, "RepoTags": tags, "Layers": layer_names}]).encode()
        self._tar.add("manifest.json", iter([listing]), len(listing))
        self._tar.finish()
        return f"docker-archive:{self._path}" + (f":{tags[0]}" if tags else "")

    def __enter__(self) -> DockerArchiveSink:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()


class _Checked(io.RawIOBase):
    """A blob as a file whose bytes are hashed as they go by; `finish` reads the rest and checks them."""

    def __init__(self, reader: ReaderAt, desc: Descriptor) -> None:
        super().__init__()
        self._pieces = pieces(reader, desc)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(bytes(next(self._pieces, b"")))
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n

    def finish(self) -> None:
        for _ in self._pieces:
            pass


def _unpacked(reader: ReaderAt, desc: Descriptor, diff_id: Digest) -> Iterator[bytes]:
    """The tar inside a layer; blob digest and diff id are checked at the end."""
    hasher = digester(diff_id.algorithm)
    raw = _Checked(reader, desc)
    with decompress(raw, desc.media_type) as stream:
        while piece := stream.read(_PIECE):
            tasks.check()
            hasher.update(piece)
            yield piece
        raw.finish()
    actual = digest_of(diff_id.algorithm, hasher)
    if actual != diff_id:
        raise DigestMismatch(f"the tar in layer {desc.digest}", diff_id, actual)


def _digest(reader: ReaderAt) -> Digest:
    hasher = digester("sha256")
    with reader.open() as stream:
        while piece := stream.read(_PIECE):
            tasks.check()
            hasher.update(piece)
    return digest_of("sha256", hasher)


def _docker_tag(name: str) -> str:
    """A name that `docker load` takes: with a tag, without a digest."""
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return ""
    return f"{reference.name}:{reference.tag}" if reference.tag else ""


def _same(one: str, other: str) -> bool:
    try:
        return Reference.parse(one) == Reference.parse(other)
    except InvalidReference:
        return False


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _object(raw: bytes, what: str) -> dict[str, object]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidDocument(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise InvalidDocument(f"{what} is not a JSON object")
    return value
