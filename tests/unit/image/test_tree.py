"""The merged tree: whiteouts, links, replacements, and how few layers it opens."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from blobtee.content import MemoryStore
from blobtee.errors import Closed, CorruptData, InvalidArgument, NotFound, TooLarge, UnsupportedMediaType
from blobtee.image import Tree, index
from blobtee.layers import EntryType
from blobtee.oci import Compressed, Descriptor, Digest
from blobtee.testing import images
from tests.unit.image.support import Broken, Put, Recipe, files, on_disk, tar, tree, unpack


def f(path: str, value: str = "") -> Put:
    return Put("f", path, value)


def d(path: str) -> Put:
    return Put("d", path)


def s(path: str, target: str) -> Put:
    return Put("s", path, target)


def h(path: str, target: str) -> Put:
    return Put("h", path, target)


def w(path: str) -> Put:
    return Put("w", path)


def o(path: str) -> Put:
    return Put("o", path)


def read(seen: Tree, path: str) -> str:
    with seen.open(path) as file:
        data = io.BufferedReader(file).read()
        assert len(data) == file.size
        return data.decode()


BASE = [d("etc"), f("etc/a", "a0"), f("etc/b", "b0"), d("etc/sub"), f("etc/sub/x", "x0"), f("top", "t0")]


def test_upper_layers_win_and_lower_ones_show_through() -> None:
    seen = tree(BASE, [d("etc"), f("etc/a", "a1"), f("etc/c", "c1")])
    assert files(seen) == {
        "etc": "d",
        "etc/a": "f:a1",
        "etc/b": "f:b0",
        "etc/c": "f:c1",
        "etc/sub": "d",
        "etc/sub/x": "f:x0",
        "top": "f:t0",
    }
    assert (read(seen, "/etc/a"), read(seen, "etc/b"), read(seen, "//etc/./c")) == ("a1", "b0", "c1")
    assert seen.lookup("etc/a").layer == 1
    assert seen.lookup("etc/b").layer == 0


def test_walk_is_sorted_with_directories_before_their_contents() -> None:
    seen = tree([f("b/z"), f("b/a"), f("a-"), f("a/x"), d("a")])
    assert [node.path for node in seen.walk()] == ["a", "a/x", "a-", "b", "b/a", "b/z"]
    assert [node.path for node in seen.walk("b")] == ["b/a", "b/z"]
    assert [node.path for node in seen.walk("/b/a")] == ["b/a"]
    with pytest.raises(NotFound):
        list(seen.walk("c"))


def test_whiteouts_hide_lower_layers_only() -> None:
    seen = tree(BASE, [d("etc"), w("etc/a"), w("etc/sub"), w("top"), f("top", "new")])
    assert files(seen) == {"etc": "d", "etc/b": "f:b0", "top": "f:new"}
    for path in ("etc/a", "etc/sub", "etc/sub/x"):
        with pytest.raises(NotFound):
            seen.lookup(path)
    again = tree(BASE, [d("etc"), w("etc/sub")], [d("etc"), d("etc/sub"), f("etc/sub/y", "y2")])
    assert files(again)["etc/sub/y"] == "f:y2"
    assert "etc/sub/x" not in files(again)


def test_a_whiteout_of_a_parent_and_what_comes_after_it() -> None:
    seen = tree(BASE, [w("etc"), d("etc"), f("etc/n", "n")])
    assert files(seen) == {"etc": "d", "etc/n": "f:n", "top": "f:t0"}


def test_opaque_directories_hide_what_is_below_them() -> None:
    seen = tree(BASE, [d("etc"), o("etc"), f("etc/c", "c1")])
    assert files(seen) == {"etc": "d", "etc/c": "f:c1", "top": "f:t0"}
    assert files(tree(BASE, [o(""), f("only", "1")])) == {"only": "f:1"}
    with pytest.raises(NotFound):
        tree(BASE, [o(""), f("only", "1")]).lookup("top")


def test_files_become_directories_and_back() -> None:
    seen = tree(BASE, [d("top"), f("top/in", "1"), d("etc"), f("etc/sub", "file")])
    assert files(seen) == {
        "etc": "d",
        "etc/a": "f:a0",
        "etc/b": "f:b0",
        "etc/sub": "f:file",
        "top": "d",
        "top/in": "f:1",
    }
    with pytest.raises(NotFound, match="not a directory"):
        seen.lookup("etc/sub/x")
    back = tree(BASE, [d("etc"), f("etc/sub", "file")], [d("etc"), d("etc/sub")])
    assert "etc/sub/x" not in files(back)


def test_the_last_of_two_entries_with_one_name_counts() -> None:
    seen = tree([f("a", "1"), f("a", "22"), d("b"), f("b/x", "1"), f("b", "file"), s("c", "a"), d("c")])
    assert files(seen) == {"a": "f:22", "b": "f:file", "c": "d"}


def test_hard_links_share_content_in_a_layer_and_across_layers() -> None:
    lower: Recipe = [f("a", "one"), h("b", "a"), h("c", "b")]
    seen = tree(lower, [h("d", "a"), w("a")], [w("b"), f("x", "x")])
    assert files(seen) == {"c": "f:one", "d": "f:one", "x": "f:x"}
    node = seen.lookup("d")
    assert (node.type, node.size, node.layer, node.path) == (EntryType.FILE, 3, 0, "d")
    # A link is to what the name meant when the link was made.
    assert files(tree([f("a", "old"), h("b", "a"), f("a", "new")])) == {"a": "f:new", "b": "f:old"}
    assert files(tree([s("l", "a"), h("m", "l"), f("a", "1")]))["m"] == "s:a"


@pytest.mark.parametrize("recipe", [[h("a", "nothing")], [d("dir"), h("a", "dir")], [h("a", "a")]])
def test_hard_links_to_nothing_are_corrupt(recipe: Recipe) -> None:
    for seen in (tree(recipe), tree([f("z")], recipe)):
        with pytest.raises(CorruptData, match="hard link"):
            seen.lookup("a")
        with pytest.raises(CorruptData, match="hard link"):
            list(seen.walk())


def test_links_are_followed_as_in_a_chroot() -> None:
    seen = tree(
        [d("usr"), d("usr/lib"), f("usr/lib/x", "x"), s("lib", "usr/lib"), s("abs", "/usr/lib/x")],
        [s("up", "../../../usr/./lib/../lib"), s("chain", "up/x"), d("usr"), s("usr/back", "../abs"), s("gone", "no")],
    )
    for path in ("lib/x", "abs", "up/x", "chain", "usr/back", "../lib/../../lib/x", "/usr/../abs"):
        assert read(seen, path) == "x"
    assert seen.lookup("abs", follow=False).linkname == "/usr/lib/x"
    assert seen.lookup("lib", follow=False).type is EntryType.SYMLINK
    assert [node.path for node in seen.walk("lib")] == ["usr/lib/x"]
    assert seen.lookup("/..").path == ""
    with pytest.raises(NotFound):
        seen.lookup("gone")


def test_a_path_that_ends_as_a_directorys_leads_to_no_file() -> None:
    seen = tree([d("etc"), f("etc/x", "x"), s("to-file", "etc/x"), s("to-dir", "etc/"), s("odd", "etc/x/")])
    for path in ("etc/x/", "etc/x/.", "to-file/", "odd"):
        with pytest.raises(NotFound, match="not a directory"):
            seen.lookup(path)
    for path in ("etc/", "/etc/.", "to-dir", "to-dir/", "etc//"):
        assert seen.lookup(path).path == "etc"
    assert seen.lookup("to-dir", follow=False).path == "to-dir"
    assert seen.lookup("to-dir/", follow=False).path == "etc"


def test_links_in_a_circle_end() -> None:
    seen = tree([s("a", "b"), s("b", "a"), s("self", "self/x")])
    for path in ("a", "a/x", "self"):
        with pytest.raises(CorruptData, match="circle"):
            seen.lookup(path)


def test_what_has_no_content_cannot_be_opened() -> None:
    seen = tree([d("etc"), f("etc/x")])
    for path in ("/", "etc", "etc/"):
        with pytest.raises(InvalidArgument, match="directory"):
            seen.open(path)


def test_files_written_through_a_link_of_a_lower_layer_are_where_it_leads() -> None:
    base: Recipe = [d("usr"), d("usr/lib"), f("usr/lib/old", "0"), s("lib", "usr/lib")]
    seen = tree(base, [f("lib/new", "1"), f("lib/old", "1")])
    assert files(seen) == {
        "lib": "s:usr/lib",
        "usr": "d",
        "usr/lib": "d",
        "usr/lib/new": "f:1",
        "usr/lib/old": "f:1",
    }
    assert read(seen, "lib/old") == read(seen, "usr/lib/old") == "1"
    assert files(tree(base, [w("lib/old")])) == {"lib": "s:usr/lib", "usr": "d", "usr/lib": "d"}
    assert files(tree(base, [f("x", "1"), h("lib/hard", "lib/old")]))["usr/lib/hard"] == "f:0"


def test_a_file_in_place_of_a_link_that_others_went_through_gives_way_to_what_comes_after_it() -> None:
    recipe = [s("a", "b"), f("a/a/a", "0"), f("a", "file"), f("a/a/a", "1")]
    assert files(tree(recipe)) == {"a": "d", "a/a": "d", "a/a/a": "f:1", "b": "d", "b/a": "d", "b/a/a": "f:0"}


def test_only_as_many_layers_are_opened_as_needed() -> None:
    seen = tree(BASE, [d("etc"), f("etc/b", "b1")], [d("etc"), f("etc/a", "a2"), w("etc/sub")])
    assert seen.opened == []
    assert read(seen, "etc/a") == "a2"
    with pytest.raises(NotFound):
        seen.lookup("etc/sub/x")
    assert seen.opened == [2]
    assert read(seen, "etc/b") == "b1"
    assert seen.opened == [1, 2]
    assert read(seen, "top") == "t0"
    assert seen.opened == [0, 1, 2]


def test_a_file_of_the_top_layer_is_found_there_when_it_says_the_directories_itself() -> None:
    seen = tree(BASE, [d("etc"), f("etc/a", "a1")])
    assert read(seen, "/etc/a") == "a1"
    assert seen.opened == [1]


def test_an_entry_that_lands_on_another_through_a_link_counts_for_a_direct_look_too() -> None:
    # `a/b` is `/b` by the time it is unpacked: a scanner must see what a container would.
    assert tree([f("b", "old"), s("a", "."), f("a/b", "new")]).open("b").read() == b"new"
    assert tree([s("a", ".")], [f("b", "old"), f("a/b", "new")]).open("b").read() == b"new"


@pytest.mark.parametrize("compression", list(Compressed))
def test_each_compression_is_read(compression: Compressed) -> None:
    big = "0123456789" * 200_000
    seen = tree([f("a", "1"), f("big", big), f("z", "2")], compression=compression)
    assert (read(seen, "big"), read(seen, "z")) == (big, "2")
    with seen.open("big") as file:
        assert file.read(3) == b"012"
        assert file.read(3) == b"345"
    with pytest.raises((Closed, ValueError)):
        file.read(1)


def test_sparse_files_are_read_expanded(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.seek(1_000_000)
        file.write(b"data")
        file.truncate(3_000_000)
    made = tmp_path / "made.tar"
    subprocess.run(["tar", "-S", "--format=posix", "-cf", str(made), "-C", str(tmp_path), "holes"], check=True)
    for compression in (Compressed.NONE, Compressed.GZIP):
        seen = tree(made.read_bytes(), compression=compression)
        assert read(seen, "holes").encode() == (tmp_path / "holes").read_bytes()


def test_an_image_without_layers_is_an_empty_root() -> None:
    seen = tree()
    assert list(seen.walk()) == []
    assert (seen.lookup("/").type, seen.lookup("/").mode) == (EntryType.DIRECTORY, 0o755)


def test_a_layer_may_say_what_the_root_is_like() -> None:
    assert tree([Put("d", "./"), f("a")]).lookup("/").layer == 0


def test_damaged_and_foreign_layers_end_in_our_errors() -> None:
    seen = tree(b"not a tar at all" * 100)
    for _ in range(2):
        with pytest.raises(CorruptData):
            seen.lookup("x")
    odd = Descriptor("application/x-helm", Digest.of(b""), 0)
    store = MemoryStore()
    with store.writer("x") as writer:
        writer.commit()
    with pytest.raises(UnsupportedMediaType):
        Tree([odd], store).lookup("x")
    gone = Descriptor("application/vnd.oci.image.layer.v1.tar", Digest.of(b"gone"), 4)
    with pytest.raises(NotFound):
        Tree([gone], store).lookup("x")


def test_layers_with_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_ENTRIES", 3)
    assert len(list(tree([f(str(n)) for n in range(3)]).walk())) == 3
    with pytest.raises(TooLarge):
        tree([f(str(n)) for n in range(4)]).lookup("1")
    monkeypatch.setattr(index, "MAX_LAYER_NBYTES", 403)
    assert tree([f("one")]).lookup("one").size == 0
    with pytest.raises(TooLarge):
        tree([f("long")]).lookup("1")


def test_layers_with_too_many_attributes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("f")
        member.pax_headers = {f"SCHILY.xattr.user.{n}": "x" for n in range(4)}
        archive.addfile(member)
    assert len(tree(buffer.getvalue()).lookup("f").entry.xattrs) == 4
    monkeypatch.setattr(index, "MAX_LAYER_NBYTES", 800)
    with pytest.raises(TooLarge):
        tree(buffer.getvalue()).lookup("f")


def test_a_layer_that_a_manifest_names_many_times_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = [f(f"d/{n}") for n in range(50)]  # not plain: it is put together anew over what is below it
    assert len(list(tree(*[layer] * 20).walk())) == 51
    monkeypatch.setattr(index, "MAX_NBYTES", 100_000)
    assert len(list(tree(layer).walk())) == 51
    with pytest.raises(TooLarge, match="memory"):
        list(tree(*[layer] * 20).walk())
    broken = tree([*layer, f(".wh.")])
    for _ in range(5):  # nothing is kept of it, so nothing is counted
        with pytest.raises(CorruptData, match="whiteout"):
            broken.lookup("d/1")
    with pytest.raises(TooLarge, match="501 layers"):
        tree(*[[f("x")]] * 501)


def test_a_few_long_paths_do_not_become_millions_of_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_PLACES", 1000)
    deep = "/d" * 400
    assert tree([f("1" + deep), f("1" + deep + "/e"), f("2" + deep)]).lookup("2" + deep).type is EntryType.FILE
    with pytest.raises(TooLarge):
        tree([f(str(n) + deep) for n in range(3)]).lookup("x")
    with pytest.raises(TooLarge):
        tree([w(str(n) + deep) for n in range(3)]).lookup("x")


def test_paths_that_would_take_days_to_follow_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each link makes what is known of the directories above the next file worthless.
    deep = "d/" * 100
    hostile = [put for n in range(50) for put in (f(f"{deep}{n}"), s(f"l{n}", "x"))]
    assert len(list(tree(hostile, hostile).walk())) == 200
    monkeypatch.setattr(index, "MAX_STEPS", 100_000)
    with pytest.raises(TooLarge):
        list(tree(hostile, hostile).walk())
    small = hostile[:4]
    assert len(list(tree(*[small] * 2).walk())) == 104
    with pytest.raises(TooLarge):  # a manifest may name it as often as it likes
        list(tree(*[small] * 30).walk())


def test_hard_links_to_a_link_that_takes_long_to_follow_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = "d/" * 100
    hidden = [w(f"{deep}x"), h("link", f"{deep}x"), *(h(f"d/{n}", "link") for n in range(20))]
    monkeypatch.setattr(index, "MAX_STEPS", 30_000)
    with pytest.raises(TooLarge, match="too long to follow"):
        tree([f(f"{deep}x")], hidden).lookup("d/1")


def test_a_hard_link_in_each_of_many_layers_is_followed_to_the_base() -> None:
    links = [[h(f"f{n}", f"f{n - 1}")] for n in range(1, 400)]
    seen = tree([f("f0", "the one")], *links, compression=Compressed.NONE)
    assert read(seen, "f399") == "the one"
    assert seen.lookup("f200").layer == 0


def test_many_threads_read_one_tree() -> None:
    seen = tree(BASE, [f("etc/a", "a1")])
    results: list[str] = []

    def look() -> None:
        results.append(read(seen, "etc/sub/x") + read(seen, "etc/a"))

    threads = [threading.Thread(target=look) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["x0a1"] * 16


def test_umoci_unpacks_the_same(tmp_path: Path) -> None:
    recipes: list[Recipe] = [
        [*BASE, s("lib", "etc/sub"), f("h1", "hard"), h("h2", "h1")],
        [d("etc"), w("etc/a"), f("lib/through", "link"), f("etc/b", "b1"), h("etc/h3", "h2")],
        [d("etc"), d("etc/sub"), o("etc/sub"), f("etc/sub/only", "1"), w("h1"), d("top"), f("top/in", "1")],
    ]
    source = images.image([images.layer(tar(recipe)) for recipe in recipes])
    layout = source.write_layout(tmp_path / "layout")
    command = ["umoci", "raw", "unpack", "--rootless", "--image", f"{layout}:latest", str(tmp_path / "root")]
    subprocess.run(command, check=True, capture_output=True)
    assert on_disk(tmp_path / "root") == files(tree(*recipes))


PARTS = ["a", "b", "c"]
paths = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("/".join)
targets = st.lists(st.sampled_from([*PARTS, "..", "."]), min_size=1, max_size=3).map("/".join)
puts = st.one_of(
    st.builds(f, paths, st.text("xyz", max_size=3)),
    st.builds(d, paths),
    st.builds(s, paths, targets | targets.map(lambda target: "/" + target)),
    st.builds(h, paths, paths),
    st.builds(w, paths),
    st.builds(o, paths | st.just("")),
)
stacks = st.lists(st.lists(puts, max_size=6), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(stacks)
def test_any_stack_is_seen_as_it_would_be_unpacked(recipes: list[list[Put]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        try:
            unpack(root, recipes)
        except Broken:
            assume(False)
        wanted = on_disk(root)
    seen = tree(*recipes, compression=Compressed.NONE)
    assert files(seen) == wanted
    fresh = tree(*recipes, compression=Compressed.NONE)
    for path, what in wanted.items():
        node = fresh.lookup(path, follow=False)
        assert node.type.value[0] == what[0]
        assert node.path == path
    for path in PARTS:
        assert _exists(tree(*recipes, compression=Compressed.NONE), path) == (path in wanted)


def _exists(seen: Tree, path: str) -> bool:
    try:
        seen.lookup(path, follow=False)
    except NotFound:
        return False
    return True
