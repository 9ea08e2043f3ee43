"""`blobtee layer`."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blobtee import transfer
from blobtee.cache import CacheManager, Ref
from blobtee.cache.labels import UNCOMPRESSED
from blobtee.cli.copy import told
from blobtee.cli.options import compression_options, epoch_option, packing
from blobtee.cli.session import PlatformType, Session, verb
from blobtee.cli.sizes import nbytes
from blobtee.compression import Compression, Type
from blobtee.content import LocalStore
from blobtee.content.files import os_errors, sync_directory
from blobtee.errors import BlobteeError, FailedPrecondition, InvalidArgument, NotFound
from blobtee.image import Image
from blobtee.oci import Platform
from blobtee.registry import Registry
from blobtee.transfer import Form

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_ENDINGS = {
    ".tar": {Type.UNCOMPRESSED},
    ".tar.gz": {Type.GZIP, Type.ESTARGZ},
    ".tgz": {Type.GZIP, Type.ESTARGZ},
    ".tar.zst": {Type.ZSTD},
}
_DEFAULTS = {".tar": Type.UNCOMPRESSED, ".tar.gz": Type.GZIP, ".tgz": Type.GZIP, ".tar.zst": Type.ZSTD}
_SCHEMES = ("docker://", *(f"{form.value}:" for form in Form))


@dataclass(frozen=True)
class _Settings:
    """What the image's configuration is to say; None and () leave it as the parent's."""

    entrypoint: list[str] | None
    cmd: list[str] | None
    env: dict[str, str]
    workdir: str | None
    user: str | None
    labels: dict[str, str]

    def __bool__(self) -> bool:
        return any(value not in (None, {}) for value in vars(self).values())


@dataclass(frozen=True)
class _Directories:
    directory: Path
    lower: Path | None
    overlay: bool
    epoch: int | None


def _command_line(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    """A JSON array of strings, or one word; an empty one is no command at all."""
    if value is None:
        return None
    if not value.startswith("["):
        return [value] if value else []
    try:
        words = json.loads(value)
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise click.BadParameter("a JSON array of strings, or one word", ctx, param)
    return words


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, each given on its own."""
    pairs = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
        pairs[name] = text
    return pairs


_EXISTING = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("directory", metavar="DIR", type=_EXISTING)
@click.option("-o", "--output", "goal", metavar="DEST", required=True, help="A layer file, or an image; see above.")
@click.option("--parent", metavar="IMAGE", help="The image to put the layer on: a name the store knows, or an address.")
@click.option("--lower", type=_EXISTING, help="The layer is what makes this directory DIR, deletions too.")
@click.option("--overlay", is_flag=True, help="DIR is the upper directory of an overlay mount, with its deletions.")
@compression_options("How to pack the layer.  [default: as a file's name says, else gzip]")
@epoch_option("Let no file be younger, and say this time in the config.", envvar="SOURCE_DATE_EPOCH")
@click.option("--entrypoint", callback=_command_line, help="""A word, or a JSON array: '["/bin/app", "-v"]'.""")
@click.option("--cmd", callback=_command_line, help="The same.")
@click.option("--env", "-e", metavar="NAME=VALUE", multiple=True, callback=_pairs, help="May be given again.")
@click.option("--workdir", "-w", help="The directory to start in.")
@click.option("--user", help="User to run as: name or number, and :group.")
@click.option(
    "--label", "-l", "labels", metavar="NAME=VALUE", multiple=True, callback=_pairs, help="May be given again."
)
@click.option("--platform", type=PlatformType(), help="Which parent of an index; without one, what the image is for.")
@verb(remote=True)
def command(
    session: Session,
    directory: Path,
    goal: str,
    parent: str | None,
    lower: Path | None,
    overlay: bool,
    kind: str | None,
    level: int | None,
    epoch: int | None,
    entrypoint: list[str] | None,
    cmd: list[str] | None,
    env: dict[str, str],
    workdir: str | None,
    user: str | None,
    labels: dict[str, str],
    platform: Platform | None,
) -> int:
    """Make a directory a layer, or an image with that layer on top.

    \b
    DEST is a layer file when it is - (standard output), a path that begins with / or . (as ./app), or ends in .tar,
    .tar.gz, .tgz or .tar.zst. Anything else is an address, and an image is made:
    a name in a registry, oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME].

    Of a layer file digest, size and diff id are printed (to standard error where the layer itself goes to standard
    output). An image is that of --parent, whose layers stay as they are and are mounted where they can be, with this
    layer added: what is in DIR comes to lie at its root. --username is for the registry of DEST. The same directory
    gives the same layer; with --epoch (or SOURCE_DATE_EPOCH) the same image too.

    \b
    Examples:
      blobtee layer ./rootfs -o app.tar.zst
      blobtee layer ./app --parent python:3.12 --cmd '["python", "/app/main.py"]' -o registry.example/team/app:1.0
      blobtee layer ./upper --overlay --parent oci:./base -o oci:./out:latest
      blobtee layer ./after --lower ./before -o - | tar -tvz
    """
    if lower is not None and overlay:
        raise click.UsageError("--lower and --overlay exclude each other")
    settings = _Settings(entrypoint, cmd, env, workdir, user, labels)
    directories = _Directories(directory, lower, overlay, epoch)
    if _is_file(goal):
        if parent is not None or platform is not None or settings:
            raise click.UsageError(f"{goal} is a layer file, which has no parent, platform or settings")
        return _to_file(session, directories, goal, _of_file(goal, kind, level))
    try:
        transfer.parse(goal)
    except BlobteeError as error:
        raise click.BadParameter(str(error), param_hint="--output") from None
    compression = packing(kind or Type.GZIP, level)
    return _to_image(session, directories, goal, parent, platform, compression, settings)


def _is_file(goal: str) -> bool:
    if goal.startswith(_SCHEMES):
        return False
    return goal == "-" or goal.startswith(("/", ".")) or goal.endswith(tuple(_ENDINGS))


def _of_file(goal: str, kind: str | None, level: int | None) -> Compression:
    """How to pack a layer file: as is asked, or as its name says; `UsageError` when these differ."""
    ending = max((ending for ending in _ENDINGS if goal.endswith(ending)), key=len, default=None)
    compression = packing(kind or (_DEFAULTS[ending] if ending is not None else Type.GZIP), level)
    if ending is not None and compression.type not in _ENDINGS[ending]:
        raise click.UsageError(f"{goal} should not be {compression.type.value}; give it another ending, or path")
    return compression


def _to_file(session: Session, directories: _Directories, goal: str, compression: Compression) -> int:
    to_stdout = goal == "-"
    if not to_stdout and Path(os.path.realpath(goal)).is_relative_to(os.path.realpath(directories.directory)):
        raise click.UsageError(f"{goal} lies in {directories.directory}, so it would be a part of itself")
    if to_stdout and session.output.as_json:
        raise click.UsageError("--json and the layer cannot both go to standard output")
    with _written(session, goal) as write:
        desc = transfer.write_layer(
            directories.directory,
            write,
            compression,
            lower=directories.lower,
            overlay=directories.overlay,
            epoch=directories.epoch,
        )
    text = f"{desc.digest}  {nbytes(desc.size)}, diff id {desc.annotations[UNCOMPRESSED]}"
    if to_stdout:
        session.output.note(text)
    else:
        session.output.result({**desc.to_json(), "diffId": desc.annotations[UNCOMPRESSED]}, text)
    return 0


@contextmanager
def _written(session: Session, goal: str) -> Iterator[Callable[[Buffer], object]]:
    """Where the layer's bytes go: a file that has its name when all is there, and is not there otherwise."""
    if goal == "-":
        yield lambda data: session.output.raw(memoryview(data))
        return
    path = Path(os.path.realpath(goal))
    with os_errors(f"write {goal}"):
        if path.exists() and not path.is_file():
            raise InvalidArgument(f"{goal} is not a file; a layer can only be written to one")
    unfinished = path.with_name(f".{path.name[:100]}-{secrets.token_hex(4)}")
    with os_errors(f"write {goal}"):
        file = open(unfinished, "xb")  # noqa: SIM115
    try:
        with file:

            def write(data: Buffer) -> None:
                with os_errors(f"write {goal}"):
                    file.write(data)

            yield write
            with os_errors(f"write {goal}"):
                file.flush()
                os.fsync(file.fileno())
        with os_errors(f"write {goal}"):
            os.replace(unfinished, path)
            sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


def _to_image(
    session: Session,
    directories: _Directories,
    goal: str,
    parent: str | None,
    platform: Platform | None,
    compression: Compression | None,
    settings: _Settings,
) -> int:
    addresses = [goal] if parent is None else [goal, parent]
    with ExitStack() as stack:
        store = stack.enter_context(session.store())
        registry = stack.enter_context(session.registry(*addresses, sign_in=goal))
        base = None
        if parent is not None:
            base = stack.enter_context(_parent(store, registry, parent, platform))
        ref = _layered(stack, CacheManager(store), directories, base.ref if base is not None else None)
        image = transfer.build(
            ref,
            store,
            base=base,
            compression=compression,
            platform=platform,
            epoch=directories.epoch,
            created_by="blobtee layer",
            entrypoint=settings.entrypoint,
            cmd=settings.cmd,
            env=settings.env,
            workdir=settings.workdir,
            user=settings.user,
            labels=settings.labels,
        )
        with image:
            report = transfer.push(image, goal, store, registry=registry)
    return told(session, report)


def _parent(store: LocalStore, registry: Registry, name: str, platform: Platform | None) -> Image:
    """The image that the store knows by that name, or else the one at that address, lazily where that can be."""
    try:
        return transfer.open_image(name, store, platform=platform, registry=registry)
    except NotFound:
        try:
            lazy = not isinstance(transfer.parse(name), transfer.FileAddress)
        except InvalidArgument as error:
            raise click.BadParameter(str(error), param_hint="--parent") from None
        # What a layout calls it, many call theirs.
        return transfer.pull(name, store, lazy=lazy, platform=platform, registry=registry, name=None if lazy else "")


def _layered(stack: ExitStack, manager: CacheManager, directories: _Directories, base: Ref | None) -> Ref:
    """The ref of the image's layers. It, and what it is made of, is forgotten with `stack`: the layer stays."""

    def temporary(ref: Ref) -> Ref:
        stack.callback(_forget, manager, ref)
        return ref

    if directories.overlay:
        return temporary(manager.add_directory(directories.directory, base, overlay=True))
    top = temporary(manager.add_directory(directories.directory))
    if directories.lower is not None:
        lower = temporary(manager.add_directory(directories.lower))
        top = temporary(manager.diff(lower, top))
    return top if base is None else temporary(manager.merge([base, top]))


def _forget(manager: CacheManager, ref: Ref) -> None:
    ref.release()
    with suppress(FailedPrecondition):  # somebody else builds on it
        manager.remove(ref.id)
