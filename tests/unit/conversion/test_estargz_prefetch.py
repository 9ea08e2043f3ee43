from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest

from blobtee.conversion import prefetch
from blobtee.conversion.estargz import EstargzWriter
from blobtee.conversion.prefetch import NO_PREFETCH, PREFETCH, prioritise
from blobtee.errors import CorruptData, InvalidArgument, TooLarge
from blobtee.layers import Entry, EntryType, entries
from tests.unit.conversion.tables import Blob


def tar_of(*names: str | tuple[str, dict[str, Any]]) -> bytes:
    """Files that hold their names; a name with a slash at its end is a directory; ("name", fields) is anything."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for given in names:
            name, fields = (given, {}) if isinstance(given, str) else given
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            for key, value in fields.items():
                setattr(info, key, value)
            data = name.encode() if info.isreg() else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def hardlink(name: str, target: str) -> tuple[str, dict[str, Any]]:
    return name, {"type": tarfile.LNKTYPE, "linkname": target}


def listed(tar: bytes) -> list[tuple[Entry, bytes]]:
    return [(entry, entry.data().read()) for entry in entries(io.BytesIO(tar)) if entry]


def reordered(tar: bytes, *paths: str) -> tuple[list[str], list[str]]:
    out = io.BytesIO()
    missing = prioritise(io.BytesIO(tar), paths, out.write)
    return [entry.path for entry, _ in listed(out.getvalue())], missing


TAR = tar_of("./", "bin/", "bin/sh", "etc/", "etc/a", "etc/deep/", "etc/deep/b", hardlink("link", "etc/deep/b"), "z")


def test_named_files_come_first_with_what_they_need_and_then_the_landmark() -> None:
    names, missing = reordered(TAR, "z", "/etc/deep/b", "./bin/sh")
    first = ["", "z", "etc", "etc/deep", "etc/deep/b", "bin", "bin/sh"]
    assert names == [*first, PREFETCH, "etc/a", "link"]
    assert missing == []


def test_a_hard_link_comes_after_what_it_links_to() -> None:
    names, _ = reordered(TAR, "link")
    assert names[: names.index(PREFETCH)] == ["", "etc", "etc/deep", "etc/deep/b", "link"]


@pytest.mark.parametrize("paths", [(), ("not there",)])
def test_nothing_to_fetch_is_said_in_front(paths: tuple[str, ...]) -> None:
    names, missing = reordered(TAR, *paths)
    assert names == [NO_PREFETCH, *[entry.path for entry, _ in listed(TAR)]]
    assert missing == list(paths)


def test_paths_of_other_layers_are_told_and_the_rest_is_done() -> None:
    names, missing = reordered(TAR, "/usr/bin/other", "z", "")
    assert missing == ["/usr/bin/other"]
    assert names[:3] == ["", "z", PREFETCH]


def test_everything_that_entries_say_stays() -> None:
    fields: dict[str, Any] = {"mode": 0o4711, "uid": 7, "gid": 8, "uname": "u", "gname": "g", "mtime": 99}
    given = [
        ("a", fields | {"pax_headers": {"SCHILY.xattr.user.x": "y", "mtime": "99.5"}}),
        ("n", fields | {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
        ("s", fields | {"type": tarfile.SYMTYPE, "linkname": "../a"}),
        ("b", fields),
    ]
    out = io.BytesIO()
    prioritise(io.BytesIO(tar_of(*given)), ["b", "s"], out.write)
    assert {(described(entry), data) for entry, data in listed(out.getvalue()) if entry.path != PREFETCH} == {
        (described(entry), data) for entry, data in listed(tar_of(*given))
    }


def described(entry: Entry) -> tuple[object, ...]:
    fields = (entry.path, entry.type, entry.size, entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.linkname)
    return (*fields, entry.uname, entry.gname, entry.devmajor, entry.devminor, tuple(entry.xattrs.items()))


def test_old_landmarks_go() -> None:
    names, _ = reordered(tar_of(NO_PREFETCH, PREFETCH, "a", "b"), "b", PREFETCH)
    assert names == ["b", PREFETCH, "a"]


def test_of_two_entries_of_one_path_the_later_is_put_first() -> None:
    tar = tar_of("x", ("a", {"uid": 1}), ("a", {"uid": 2}))
    out = io.BytesIO()
    prioritise(io.BytesIO(tar), ["a"], out.write)
    assert [(entry.path, entry.uid) for entry, _ in listed(out.getvalue())] == [("a", 2), (PREFETCH, 0), ("x", 0)]


@pytest.mark.parametrize(
    "links", [{"a": "b", "b": "a"}, {f"a{n}": f"a{n + 1}" for n in range(50)}], ids=["loop", "long"]
)
def test_links_without_an_end_are_left_where_they_are(links: dict[str, str]) -> None:
    tar = tar_of("x", *(hardlink(name, target) for name, target in links.items()))
    start = next(iter(links))
    names, missing = reordered(tar, start, "x")
    assert names == ["x", PREFETCH, *links]
    assert missing == [start]


def test_files_with_holes_are_written_out_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"GNU.sparse.map": "10,4", "GNU.sparse.size": "1000"}
    tar = tar_of("z", ("hole", {"pax_headers": headers}), ("also", {"pax_headers": headers}))
    out = io.BytesIO()
    prioritise(io.BytesIO(tar), ["hole"], out.write)
    found = {entry.path: data for entry, data in listed(out.getvalue())}
    assert found["hole"] == bytes(10) + b"hole" + bytes(986)
    assert found["also"] == bytes(10) + b"also" + bytes(986)
    monkeypatch.setattr(prefetch, "MAX_HOLES", 1500)
    with pytest.raises(TooLarge, match="holes"):
        prioritise(io.BytesIO(tar), ["hole"], out.write)


def test_paths_that_lead_out_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="leads out"):
        reordered(TAR, "../etc/passwd")


def test_a_damaged_tar_is_our_error() -> None:
    with pytest.raises(CorruptData):
        reordered(TAR[:700], "z")


def test_a_layer_in_that_order_has_the_landmark_behind_what_is_fetched() -> None:
    out = bytearray()
    with EstargzWriter(out.extend) as writer:
        prioritise(io.BytesIO(TAR), ["z", "bin/sh"], writer.write)
        writer.finish()
    blob = Blob(bytes(out))
    landmark = blob.named(PREFETCH)["offset"]
    before = {entry["name"] for entry in blob.entries if 0 < entry.get("offset", 0) < landmark}
    assert before == {"z", "bin/sh"}
    assert blob.content(PREFETCH) == b"\x0f"
    assert EntryType.FILE in {entry.type for entry, _ in listed(blob.tar) if entry.path == PREFETCH}
