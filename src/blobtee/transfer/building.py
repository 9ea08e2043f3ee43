"""Images that are made here: of refs and a configuration, or of an image whose layers are packed otherwise."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from blobtee import conversion, layers, tasks
from blobtee.cache import CacheManager, Handler, MetadataStore, Ref, RefConfig, Remote
from blobtee.cache import labels as cache_labels
from blobtee.compression import Compression
from blobtee.content import digester
from blobtee.content.digester import digest_of
from blobtee.errors import InvalidArgument
from blobtee.image import Image
from blobtee.oci import Config, Descriptor, Manifest, Platform, Reference
from blobtee.oci.documents import check_epoch
from blobtee.transfer import images
from blobtee.transfer.nearby import labels_of
from blobtee.transfer.rewriting import Plan, described, rewrite

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


def build(
    ref: Ref,
    store: MetadataStore,
    name: str = "",
    *,
    base: Image | None = None,
    compression: Compression | None = None,
    platform: Platform | str | None = None,
    epoch: int | None = None,
    created_by: str = "blobtee",
    entrypoint: Sequence[str] | None = None,
    cmd: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    workdir: str | None = None,
    user: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Image:
    """An image whose layers are those of `ref`, in `store`; close it after use, and `push` it if you like.

    Layers that have no blob yet are made, packed as `compression` says (gzip by default); those that have one stay as
    they are, lazy ones lazy, unless it is forced. The configuration is that of `base`, whose layers are the lowest of
    `ref`, or an empty one for `platform` (by default Linux on this machine's processor); it and its history are
    extended as `Config.extended` says. Files in new layers, the configuration's time and that of its history are no
    younger than `epoch`, in seconds since 1970: with it, the same directories give the same image.

    With a `name` the store knows the image by it, in full (`docker.io/library/app:latest` for `app`).

    `InvalidArgument`: `ref` is not built on `base`, or settings make no sense; `InvalidReference`: `name`. The rest is
    what `Ref.get_remote` raises. After a failure the name stands for what it stood for before.
    """
    check_epoch(epoch)
    known_as = _full(name) if name else ""
    if known_as and not images.has_names(store):
        raise InvalidArgument("this store keeps no names of images")
    if base is not None:
        _check_base(ref, base)
    started = base.config if base is not None else Config.scratch(_platform(platform))
    with CacheManager(store).leases.hold():
        wish = compression if compression is not None else Compression()
        remote = ref.get_remote(create_if_needed=True, config=RefConfig(wish, epoch=epoch))
        config = started.extended(
            [desc.annotations[cache_labels.UNCOMPRESSED] for desc in remote.descriptors],
            created=epoch if epoch is not None else int(time.time()),
            created_by=created_by,
            entrypoint=entrypoint,
            cmd=cmd,
            env=env,
            workdir=workdir,
            user=user,
            labels=labels,
        )
        manifest, raw_config = described(remote.descriptors, config)
        sources = _sources(store, remote, base)
        image = keep(store, known_as, manifest, raw_config, ref.handlers, sources)
        try:
            if known_as and images.has_names(store):
                store.layout.set(known_as, manifest.descriptor)
        except BaseException:
            image.close()
            raise
    return image


def _full(name: str) -> str:
    reference = Reference.parse(name)
    if reference.digest is not None:
        raise InvalidArgument(f"{name}: the digest of an image that is yet to be made cannot be its name")
    return str(reference)


def _platform(platform: Platform | str | None) -> Platform:
    if isinstance(platform, str):
        return Platform.parse(platform)
    return platform or Platform.current()


def _check_base(ref: Ref, base: Image) -> None:
    """`InvalidArgument` unless the layers of `base` are the lowest of `ref`."""
    chain = ref.layer_chain()
    try:
        lowest = [layer.diff_id for layer in chain[: len(base.config.diff_ids)]]
    finally:
        for layer in chain:
            layer.release()
    if lowest != list(base.config.diff_ids):
        raise InvalidArgument(f"ref {ref.id} is not built on {base.name or base.manifest.digest}")


def _sources(store: MetadataStore, remote: Remote, base: Image | None) -> dict[str, str]:
    """Where lazy layers can be had, for whoever opens the image later."""
    sources: dict[str, str] = {}
    if base is not None:
        sources = cache_labels.merged_sources({}, labels_of(store, base.manifest.digest))
    for desc in remote.descriptors:
        sources = cache_labels.merged_sources(sources, desc.annotations)
    return sources


def keep(
    store: MetadataStore,
    name: str,
    manifest: Manifest,
    raw_config: bytes,
    handlers: Mapping[str, Handler],
    labels: Mapping[str, str],
    image_ref: str = "",
) -> Image:
    """The image of documents that were made here, which are put into the store; the lease of the context holds them."""
    leases = CacheManager(store).leases
    leases.protect([manifest.digest, manifest.config.digest])
    config = images.read_config(raw_config, manifest)
    images.keep_document(store, manifest.config, raw_config, {})
    images.keep_document(store, manifest.descriptor, manifest.raw, {**images.child_labels(manifest), **labels})
    return images.assemble(store, name, manifest.descriptor, manifest, config, handlers, image_ref)


def packed(image: Image, compression: Compression) -> Remote:
    """The layers of an image packed as `compression` says."""
    config = RefConfig(Compression(compression.type, level=compression.level, force=True))
    return image.get_remote(create_if_needed=True, config=config)


def repacked(
    image: Image,
    store: MetadataStore,
    compression: Compression,
    handlers: Mapping[str, Handler],
    labels: Mapping[str, str],
    image_ref: str,
) -> Image:
    """The image with its layers packed as `compression` says, in place of `image`, which is closed; `image` itself
    when that changes nothing. Its documents are in the store, with `labels`, and held by the lease of the context."""
    plan = Plan(image.config, packed(image, compression).descriptors)
    rewritten = rewrite([image.manifest], {image.manifest.digest: plan})
    manifest = rewritten.documents[-1]
    assert isinstance(manifest, Manifest)
    if manifest.digest == image.manifest.digest:
        return image
    raw_config = rewritten.blobs.get(manifest.config.digest, image.config.raw)
    made = keep(store, image.name, manifest, raw_config, handlers, labels, image_ref)
    image.close()
    return replace(made, descriptor=replace(manifest.descriptor, platform=image.descriptor.platform))


def write_layer(
    directory: str | os.PathLike[str],
    write: Callable[[Buffer], object],
    compression: Compression,
    *,
    lower: str | os.PathLike[str] | None = None,
    overlay: bool = False,
    epoch: int | None = None,
) -> Descriptor:
    """Write a layer of what is in `directory` to `write`, in pieces that are good only during the call, and return its
    descriptor; the annotation `containerd.io/uncompressed` is its diff id.

    With `lower` it is what makes the tree `lower` the tree `directory`; with `overlay`, `directory` is the upper
    directory of an overlay mount. `epoch` as for `build`. Errors: those of `layers.write_changes` and what `write`
    raises; what was written by then is of no use.
    """
    check_epoch(epoch)
    if overlay and lower is not None:
        raise InvalidArgument("an overlay's upper directory is not compared with another")
    hasher = digester("sha256")
    size = 0

    def out(data: Buffer) -> None:
        nonlocal size
        hasher.update(data)
        size += memoryview(data).nbytes
        write(data)

    with tasks.meter("", "create") as progress, conversion.Packer(compression, out) as packer:

        def into(data: Buffer) -> None:
            tasks.check()
            packer.write(data)
            progress.advance(memoryview(data).nbytes)

        if overlay:
            layers.write_overlay(directory, into, epoch=epoch)
        else:
            layers.write_changes(lower, directory, into, epoch=epoch)
        annotations = packer.finish().annotations
    return Descriptor(compression.type.media_type, digest_of("sha256", hasher), size, annotations=annotations)
