"""Options that several verbs have in common: how layers are packed, and how young files may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from blobtee.compression import Compression, Type
from blobtee.content import Trust
from blobtee.errors import InvalidArgument
from blobtee.oci.documents import MAX_EPOCH
from blobtee.tasks import bandwidth_of

_Callback = Callable[..., Any]


class BandwidthType(click.ParamType[float]):
    name = "bandwidth"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            rate = bandwidth_of(value)
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)
        assert rate is not None
        return rate


def compression_options(text: str, *, required: bool = False) -> Callable[[_Callback], _Callback]:
    """`--compression` and `--level`; the callback gets `kind` and `level` (see `wish`)."""

    def decorate(function: _Callback) -> _Callback:
        for option in (
            click.option("--level", type=int, help="gzip and estargz: 0 to 12; zstd: 1 to 22."),
            click.option(
                "--compression", "kind", type=click.Choice([each.value for each in Type]), required=required, help=text
            ),
        ):
            function = option(function)
        return function

    return decorate


def trust_option() -> Callable[[_Callback], _Callback]:
    """`--trust`: the least that is good enough for what is read of layers; the callback gets `trust`."""
    return click.option(
        "--trust",
        type=click.Choice([trust.value for trust in (Trust.ATTESTED, Trust.BLOB, Trust.RAW)]),
        default=Trust.ATTESTED.value,
        show_default=True,
        help="Before anything is believed of a layer that is not here. attested: the parts that are needed, by digests "
        "that its manifest leads to; layers without such a table whole. blob: whole, and its digest. raw: of a tar "
        "that is not packed, the parts that are needed, unchecked.",
    )


def epoch_option(text: str, *, envvar: str | None = None) -> Callable[[_Callback], _Callback]:
    """`--epoch`, in seconds since 1970."""
    return click.option("--epoch", type=click.IntRange(0, MAX_EPOCH), envvar=envvar, metavar="SECONDS", help=text)


def wish(kind: str | None, level: int | None) -> Compression | None:
    """What the options ask for; None when they ask for nothing. `UsageError` for a level that the type has not."""
    if kind is None:
        if level is not None:
            raise click.UsageError("--level belongs to --compression")
        return None
    return packing(kind, level)


def packing(kind: str, level: int | None, *, force: bool = False) -> Compression:
    """As `wish`, for a type that is known."""
    try:
        return Compression(kind, force=force, level=level)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from None
