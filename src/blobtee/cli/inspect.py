"""`blobtee inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from blobtee import transfer
from blobtee.cli.copy import nearby_store
from blobtee.cli.output import printable
from blobtee.cli.session import PlatformType, Session, verb
from blobtee.cli.sizes import nbytes
from blobtee.compression import Type
from blobtee.content import total_size
from blobtee.oci import Descriptor, Platform
from blobtee.transfer import Inspection, LayerFacts

_SETTINGS = ("Entrypoint", "Cmd", "Env", "WorkingDir", "User", "Labels")


@click.command()
@click.argument("name", metavar="REF")
@click.option("--raw", is_flag=True, help="The bytes of the manifest or index, as they are.")
@click.option("--platform", type=PlatformType(), help="Image of an index; default: this machine's, or the one pulled.")
@verb(remote=True)
def command(session: Session, name: str, raw: bool, platform: Platform | None) -> int:
    """Tell what an image is made of: its layers, how they are packed, and what of them is here.

    REF is a name that the store knows, or else an address; of a registry only documents are read, and nothing is kept.
    For each layer: whether it is in the store or lazy, digest, size, packing, and the variants of it that the store
    has. With --json it is one object, which has media types, diff ids, chain ids and annotations too.

    \b
    Examples:
      blobtee inspect python:3.12
      blobtee inspect --json oci:./build:latest | jq -r '.layers[].diffId'
      blobtee inspect --raw registry.example/team/app:1.0 | sha256sum
    """
    with session.registry(name) as registry, nearby_store(session) as store:
        if raw:
            session.output.raw(transfer.raw_document(name, store, platform=platform, registry=registry))
            return 0
        found = transfer.inspect(name, store, platform=platform, registry=registry)
    if session.output.as_json:
        session.output.result(_value(found), "")
        return 0
    for line in _lines(found):
        session.output.line(printable(line))
    return 0


def _value(found: Inspection) -> dict[str, object]:
    return {
        "name": found.name,
        "digest": found.root.digest,
        "mediaType": found.root.media_type,
        "platform": str(found.platform),
        "platforms": [str(platform) for platform in found.platforms],
        "manifest": found.manifest.descriptor.to_json(),
        "config": {**found.manifest.config.to_json(), "contents": found.config.json},
        "layers": [_layer(layer) for layer in found.layers],
    }


def _layer(layer: LayerFacts) -> dict[str, object]:
    return {
        **layer.descriptor.to_json(),
        "diffId": layer.diff_id,
        "chainId": layer.chain_id,
        "compression": layer.compression.value if layer.compression is not None else None,
        "lazy": not layer.present,
        "variants": [{**desc.to_json(), "compression": kind.value} for desc, kind in layer.variants],
    }


def _lines(found: Inspection) -> Iterator[str]:
    yield f"{found.name}@{found.root.digest}" if "@" not in found.name else found.name
    yield f"media type  {found.root.media_type}"
    yield f"platform    {found.platform}"
    if found.platforms:
        yield f"index of    {', '.join(map(str, found.platforms))}"
        yield f"manifest    {found.manifest.digest}"
    yield f"config      {found.manifest.config.digest}"
    if found.layers:
        yield f"chain id    {found.layers[-1].chain_id}"
    if isinstance(found.config.json.get("created"), str):
        yield f"created     {found.config.json['created']}"
    settings = found.config.json.get("config")
    for key in _SETTINGS:
        if isinstance(settings, dict) and settings.get(key):
            value = settings[key]
            yield f"{key.lower():<11} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
    yield f"layers      {len(found.layers)}, {nbytes(total_size([layer.descriptor for layer in found.layers]))}"
    for layer in found.layers:
        yield _line("here" if layer.present else "lazy", layer.descriptor, layer.compression)
        for desc, kind in layer.variants:
            yield _line("  variant", desc, kind)


def _line(state: str, desc: Descriptor, kind: Type | None) -> str:
    return f"  {state:<10}{desc.digest}  {nbytes(desc.size):>10}  {kind.value if kind is not None else desc.media_type}"
