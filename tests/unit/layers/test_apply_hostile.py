"""Layers made to do harm: whatever they say, nothing beside the root changes, and only our errors come."""

from __future__ import annotations

import gc
import io
import os
import stat
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobtee.errors import BlobteeError, CorruptData, PermissionDenied, StorageError, TooLarge
from blobtee.layers import apply
from tests.unit.layers.tars import as_nobody, details, directory, file, hardlink, member, remove, symlink, tar, tree

Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root with a neighbour that must be the same afterwards, whatever the test does."""
    path = tmp_path / "root"
    path.mkdir()
    outside = tmp_path / "outside"
    (outside / "dir").mkdir(parents=True)
    (outside / "secret").write_bytes(b"secret")
    (outside / "dir/f").write_bytes(b"f")
    os.chmod(outside / "secret", 0o640)
    before, inside = details(outside), outside.stat()
    yield path
    after = outside.stat()
    assert tree(outside) == {"dir": "d", "dir/f": b"f", "secret": b"secret"}
    assert details(outside) == before
    assert (after.st_mode, after.st_mtime_ns) == (inside.st_mode, inside.st_mtime_ns)
    assert sorted(os.listdir(tmp_path)) == ["outside", "root"]
    remove(path)


def put(root: Path, *members: Member) -> None:
    apply(io.BytesIO(tar(*members)), root)


def real(root: Path) -> str:
    return str(root.parent / "outside")


# ---- ways out


@pytest.mark.parametrize("up", ["../outside", "../../../../../../outside", "/outside", "/../outside"])
def test_writing_through_a_link_stays_inside(up: str, root: Path) -> None:
    put(
        root,
        symlink("l", up),
        file("l/secret", b"gotcha"),
        file("l/dir/.wh.f", b""),
        file("l/.wh..wh..opq", b""),
        directory("l/dir", 0o777),
        file("l/dir/g", b"gotcha"),
    )
    assert tree(root) == {
        "l": f"-> {up}",
        "outside": "d",
        "outside/dir": "d",
        "outside/dir/g": b"gotcha",
        "outside/secret": b"gotcha",
    }


def test_absolute_links_to_real_paths_stay_inside_too(root: Path) -> None:
    put(root, symlink("l", real(root)), file("l/secret", b"gotcha"), file("l/.wh.dir", b""))
    assert (root / real(root).lstrip("/") / "secret").read_bytes() == b"gotcha"


def test_a_file_over_a_link_replaces_the_link(root: Path) -> None:
    put(root, symlink("l", "../outside/secret"), file("l", b"gotcha", mode=0o777))
    put(root, symlink("d", "../outside/dir"), directory("d", 0o777), file("d/f", b"gotcha"))
    assert tree(root) == {"l": b"gotcha", "d": "d", "d/f": b"gotcha"}


def test_a_whiteout_takes_the_link_and_not_what_it_leads_to(root: Path) -> None:
    for name in ("l", "m"):
        (root / name).symlink_to("../outside")
    put(root, file(".wh.l", b""), file("m/.wh..wh..opq", b""), file("m/.wh.secret", b""))
    assert tree(root) == {"m": "-> ../outside"}


def test_links_deep_in_what_is_taken_away_are_not_followed(root: Path) -> None:
    (root / "d/e").mkdir(parents=True)
    (root / "d/e/l").symlink_to(real(root))
    (root / "d/l").symlink_to(real(root))
    put(root, file("d/.wh..wh..opq", b""))
    assert tree(root) == {"d": "d"}


@pytest.mark.parametrize("target", ["../outside/secret", "a/../../outside/secret", "..", "a\0b"])
def test_hard_links_cannot_name_what_is_outside(target: str, root: Path) -> None:
    with pytest.raises(CorruptData):
        put(root, member("h", tarfile.LNKTYPE, pax={"linkpath": target}))
    assert tree(root) == {}


def test_hard_links_through_links_stay_inside(root: Path) -> None:
    with pytest.raises(CorruptData, match="no file"):
        put(root, symlink("l", real(root)), hardlink("h", "l/secret"))
    put(root, symlink("s", real(root) + "/secret"), hardlink("h", "s"), file("h", b"gotcha"))
    assert tree(root)["h"] == b"gotcha"


def test_a_hard_link_to_a_link_is_changed_as_a_link(root: Path) -> None:
    link = member("h", tarfile.LNKTYPE, link="s", mode=0o777, uid=7)
    put(root, symlink("s", "../outside/secret"), link, file("s", b"gotcha"))
    assert tree(root) == {"h": "-> ../outside/secret", "s": b"gotcha"}


@pytest.mark.parametrize("name", ["../f", "a/../../outside/secret", "..", "a/..", "./../outside/x"])
def test_names_that_lead_up_are_refused(name: str, root: Path) -> None:
    for entry in (file(name), directory(name), symlink(name, "x"), hardlink(name, "x")):
        with pytest.raises(CorruptData):
            put(root, entry)
    assert tree(root) == {}


def test_absolute_names_are_below_the_root(root: Path) -> None:
    put(root, file(real(root) + "/secret", b"gotcha"))
    assert (root / real(root).lstrip("/") / "secret").read_bytes() == b"gotcha"


@pytest.mark.parametrize("swap", [symlink("d", "../outside"), symlink("d", "/outside"), hardlink("d", "l")])
def test_a_directory_that_becomes_a_link_between_two_entries_is_not_written_to_any_more(
    swap: Member, root: Path
) -> None:
    put(
        root,
        symlink("l", "../outside"),
        directory("d/dir", mtime=5),
        file("d/dir/a"),
        swap,
        file("d/dir/f", b"gotcha"),
        file("d/secret", b"gotcha"),
    )
    assert (root / "d").is_symlink()
    assert tree(root / "outside") == {"dir": "d", "dir/f": b"gotcha", "secret": b"gotcha"}


def test_times_and_modes_that_come_last_do_not_follow_links(root: Path) -> None:
    """What `d` was is gone when the directories get their times."""
    put(root, directory("d", 0o777, mtime=5), directory("e/d", mtime=6), symlink("d", "../outside"), symlink("e", "d"))
    assert tree(root) == {"d": "-> ../outside", "e": "-> d"}


@pytest.mark.parametrize(
    "links", [{"l": "l"}, {"l": "m", "m": "l"}, {"l": "l/x"}, {f"l{n}": f"l{n + 1}" for n in range(60)}]
)
def test_links_in_a_circle_are_refused(links: dict[str, str], root: Path) -> None:
    first = next(iter(links))
    with pytest.raises(CorruptData, match="circle"):
        put(root, *[symlink(*pair) for pair in links.items()], file(f"{first}/f"))


def test_links_that_multiply_are_followed_once_for_each_directory_they_lead_to(root: Path) -> None:
    """Twenty links of four hundred parts each: 400 ** 20 steps, if each part were followed for itself."""
    many = [symlink(f"l{n}", "/".join([f"l{n + 1}"] * 400)) for n in range(20)]
    put(root, *many, file("l0/f"))
    with pytest.raises(CorruptData, match="circle"):
        put(
            root,
            directory("d"),
            *[symlink(f"d/l{n}", f"l{n + 1}/." + "/../l0" * 400) for n in range(60)],
            file("d/l0/f"),
        )


# ---- strange entries


def test_devices_and_pipes_replace_what_is_there_and_are_not_opened(root: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    put(root, directory("d"), file("d/f"), member("d", tarfile.CHRTYPE, device=(1, 3)), member("p", tarfile.FIFOTYPE))
    put(root, file("p", b"not written into the pipe"), file("d/g"))
    assert tree(root) == {"d": "d", "d/g": b"data", "p": b"not written into the pipe"}


@pytest.mark.parametrize("device", [(1 << 12, 0), (0, 1 << 20)])
def test_device_numbers_that_linux_does_not_have_are_refused(device: tuple[int, int], root: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    with pytest.raises(CorruptData, match="device numbers"):
        put(root, member("d", tarfile.CHRTYPE, device=device))


def test_owners_that_linux_does_not_have_are_refused(root: Path) -> None:
    for owner in ("4294967295", "-1", "99999999999999999999"):
        for key in ("uid", "gid"):
            with pytest.raises(CorruptData):
                apply(io.BytesIO(tar(file("f", pax={key: owner}))), root, as_root=True)


def test_impossible_times_become_the_nearest(root: Path) -> None:
    put(root, file("late", mtime="9" * 19), file("early", mtime="-" + "9" * 19), directory("d", mtime="9" * 19))
    assert (root / "late").stat().st_mtime > 2**33
    assert (root / "early").stat().st_mtime < 0


@pytest.mark.parametrize("name", ["", ".", "./", "/", "//./"])
def test_only_a_directory_can_be_the_root(name: str, root: Path) -> None:
    put(root, directory(name, 0o711))
    assert stat.S_IMODE(root.stat().st_mode) == 0o711
    for entry in (file(name), symlink(name, "/outside"), hardlink(name, "x"), member(name, tarfile.FIFOTYPE)):
        with pytest.raises(CorruptData):
            put(root, entry)


def test_names_with_a_nul_or_too_long_a_part_are_refused(root: Path) -> None:
    with pytest.raises(CorruptData):
        put(root, file("x", pax={"path": "a\0b"}))
    with pytest.raises(StorageError, match="too long"):
        put(root, file("n" * 256))
    with pytest.raises(StorageError, match="too long"):
        put(root, symlink("l", "t" * 5000))


def test_trees_deeper_than_one_call_can_name_are_made_and_taken_away(root: Path) -> None:
    put(root, file("a/" * 5000 + "f"), directory("a/" * 5000 + "d", mtime=5), file("a/" * 4999 + "g"))
    put(root, file("a/" * 5000 + ".wh.f", b""), file("a/a/.wh..wh..opq", b""))
    assert tree(root) == {"a": "d", "a/a": "d"}


def test_links_do_not_make_trees_deeper_than_a_path_can_be(root: Path) -> None:
    down = "a/" * 1000
    with pytest.raises(TooLarge, match="deeper"):
        put(
            root, *[symlink("a/" * (1000 * n) + "l", down) for n in range(15)], file("a/" * 14_000 + "l/" + "b/" * 1500)
        )
    put(root, file(".wh.a", b""))


def test_attributes_that_no_file_can_have_are_refused(root: Path) -> None:
    for name, value in (("", "x"), ("user.\0", "x"), ("user." + "n" * 300, "x"), ("user.big", "v" * 70_000)):
        with pytest.raises(CorruptData, match="attribute"):
            put(root, file("f", xattrs={name: value}))
    put(root, file("g", xattrs={"unknown.space": "x", "nothing": "x"}))
    assert os.listxattr(root / "g") == []


def test_a_bomb_of_attributes_ends_in_an_error_or_is_set(root: Path) -> None:
    bomb = {f"user.{number:05}": "v" * 200 for number in range(3000)}
    try:
        put(root, file("f", xattrs=bomb))
    except BlobteeError:
        assert len(os.listxattr(root / "f")) < 3000


@pytest.mark.parametrize("size", [2**63 - 1, (1 << 44) + 1])
def test_files_of_nothing_but_holes_have_a_bound(size: int, root: Path) -> None:
    started = time.monotonic()
    sparse = {"GNU.sparse.size": str(size), "GNU.sparse.numblocks": "1", "GNU.sparse.map": f"{size - 1},1"}
    with pytest.raises(TooLarge, match="holes"):
        put(root, member("f", data=b"x", pax=sparse))
    assert time.monotonic() - started < 5
    assert tree(root) == {}


def test_a_file_that_claims_more_than_there_is_ends_at_once(root: Path) -> None:
    info, _ = file("f", b"")
    info.size = 2**62
    with pytest.raises(CorruptData, match="ends"):
        apply(io.BytesIO(tar((info, b""))), root)


def test_a_hard_link_to_a_directory_to_itself_or_to_nothing_is_refused(root: Path) -> None:
    for entry in (hardlink("h", "d"), hardlink("h", "h"), hardlink("h", "d/none"), hardlink("d", "d/f")):
        with pytest.raises(CorruptData, match="no file"):
            put(root, directory("d"), file("d/f"), entry)


def test_a_hard_link_that_takes_its_own_target_away_is_refused(root: Path) -> None:
    for entry in (hardlink("p/h", "p"), hardlink("d", "d/f"), hardlink("d/f/h", "d/f")):
        with pytest.raises(CorruptData, match="no file"):
            put(root, member("p", tarfile.FIFOTYPE), directory("d"), file("d/f"), entry)


# ---- anything at all

NAMES = ["a", "b", "a/b", "a/b/c", "b/a", "l", "l/a", "l/b/c", "/a", "./a", "l/secret", "l/dir/f", "outside/dir"]
MARKS = [".wh.a", ".wh.l", "a/.wh.b", "l/.wh.secret", "l/.wh..wh..opq", ".wh..wh..opq", "a/.wh..wh..opq", "a/b/.wh.c"]
REFUSED = ["", "..", "a/../..", ".wh.", ".wh..."]
TARGETS = [
    "a",
    "b",
    "l",
    "..",
    "../outside",
    "/outside",
    "../../outside/dir",
    "a/b",
    ".",
    "/",
    "l/secret",
    "b/../../outside",
]
LINKS = st.builds(symlink, st.sampled_from(NAMES), st.sampled_from(TARGETS))
ENTRIES = st.one_of(
    st.builds(file, st.sampled_from(NAMES + MARKS + REFUSED), st.binary(max_size=3), mode=st.integers(0, 0o7777)),
    st.builds(directory, st.sampled_from(NAMES + MARKS), st.integers(0, 0o7777), mtime=st.integers(0, 9)),
    LINKS,
    st.builds(hardlink, st.sampled_from(NAMES), st.sampled_from(TARGETS)),
    st.builds(member, st.sampled_from(NAMES), st.sampled_from([tarfile.FIFOTYPE, tarfile.CHRTYPE, b"V", b"S"])),
    st.builds(file, st.sampled_from(NAMES), xattrs=st.dictionaries(st.sampled_from(["user.a", "b"]), st.just("x"))),
)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    gc.collect()  # what other tests left open must not go while descriptors are counted
    path = tmp_path_factory.mktemp("fields")
    above = [part for part in path.parents if not stat.S_IMODE(part.stat().st_mode) & 0o001]
    modes = {part: stat.S_IMODE(part.stat().st_mode) for part in above}
    path.chmod(0o777)
    for part in above:
        part.chmod(modes[part] | 0o011)
    yield path
    for part, mode in modes.items():
        part.chmod(mode)


@pytest.mark.parametrize("nobody", [False, True], ids=["as root", "as nobody"])
@settings(max_examples=150, deadline=None)
@given(layers=st.lists(st.lists(ENTRIES, max_size=10), min_size=1, max_size=3))
def test_whatever_layers_say_only_the_root_changes(fields: Path, nobody: bool, layers: list[list[Member]]) -> None:
    field = fields / str(time.monotonic_ns())
    outside = field / "outside"
    (outside / "dir").mkdir(parents=True)
    (outside / "secret").write_bytes(b"secret")
    root = field / "root"
    root.mkdir()
    for path in (field, outside, outside / "dir", outside / "secret", root):
        path.chmod(0o777)
    before = details(outside)
    descriptors = len(os.listdir("/proc/self/fd"))
    for members in layers:
        try:
            if nobody:
                with as_nobody():
                    put(root, *members)
            else:
                put(root, *members)
        except BlobteeError as error:
            if isinstance(error, PermissionDenied) and not nobody:
                raise
    assert details(outside) == before
    assert sorted(os.listdir(field)) == ["outside", "root"]
    assert len(os.listdir("/proc/self/fd")) == descriptors
