"""Names of images in index.json."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from blobtee.content import Layout
from blobtee.errors import InvalidArgument, InvalidDocument, NotFound, StorageError, TooLarge
from tests.conformance.blobs import describe

A, B = describe(b"a"), describe(b"b")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    made.ensure()
    return made


def test_a_new_layout_is_one_that_others_read(layout: Layout) -> None:
    assert json.loads((layout.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((layout.root / "index.json").read_bytes()) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
    }
    assert layout.names() == {}


def test_names_are_set_moved_and_removed(layout: Layout) -> None:
    layout.set("docker.io/library/a:1", A)
    layout.set("b", B)
    assert {name: desc.digest for name, desc in layout.names().items()} == {
        "docker.io/library/a:1": A.digest,
        "b": B.digest,
    }
    layout.set("docker.io/library/a:1", B)
    assert layout.get("docker.io/library/a:1").digest == B.digest
    assert len(layout.names()) == 2
    layout.remove("b")
    with pytest.raises(NotFound):
        layout.get("b")
    with pytest.raises(NotFound):
        layout.remove("b")
    with pytest.raises(InvalidArgument):
        layout.set("", A)


def test_both_annotations_carry_the_name_and_others_stay(layout: Layout) -> None:
    layout.set("name", A.annotated({"mine": "1"}))
    (entry,) = json.loads((layout.root / "index.json").read_bytes())["manifests"]
    assert entry["annotations"] == {
        "mine": "1",
        "org.opencontainers.image.ref.name": "name",
        "io.containerd.image.name": "name",
    }


def test_what_others_wrote_is_kept(layout: Layout) -> None:
    foreign = [
        {**A.to_json(), "annotations": {"org.opencontainers.image.ref.name": "latest"}, "unknown": [1]},
        {**B.to_json()},
        {"not": "a descriptor"},
        "not even an object",
    ]
    (layout.root / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": foreign, "annotations": {"a": "b"}, "extra": 7})
    )
    assert {name: desc.digest for name, desc in layout.names().items()} == {"latest": A.digest}
    layout.set("mine", B)
    layout.remove("mine")
    index = json.loads((layout.root / "index.json").read_bytes())
    assert index == {"schemaVersion": 2, "manifests": foreign, "annotations": {"a": "b"}, "extra": 7}


def test_a_full_name_outranks_a_tag_and_the_first_of_equals_counts(layout: Layout) -> None:
    entries = [
        {
            **desc.to_json(),
            "annotations": {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "example.org/a:1"},
        }
        for desc in (A, B)
    ]
    (layout.root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    assert {name: desc.digest for name, desc in layout.names().items()} == {"example.org/a:1": A.digest}
    layout.remove("example.org/a:1")
    assert layout.names() == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"manifests": 7}', b"\xff", b"[" * 100_000])
def test_an_index_that_is_none_is_told_and_not_overwritten(layout: Layout, content: bytes) -> None:
    (layout.root / "index.json").write_bytes(content)
    with pytest.raises(InvalidDocument):
        layout.names()
    with pytest.raises(InvalidDocument):
        layout.set("name", A)
    assert (layout.root / "index.json").read_bytes() == content


@pytest.mark.parametrize("text", ["\\ud800", "\\ud83d\\ude00", "é"])
def test_any_text_of_others_is_kept(layout: Layout, text: str) -> None:
    (layout.root / "index.json").write_text(f'{{"manifests": [], "theirs": "{text}"}}', encoding="utf-8")
    layout.set("name \udc80", A)
    assert layout.get("name \udc80").digest == A.digest
    assert json.loads((layout.root / "index.json").read_bytes())["theirs"] == json.loads(f'"{text}"')


def test_numbers_that_json_cannot_say_are_not_written(layout: Layout) -> None:
    content = b'{"manifests": [], "theirs": 1e999}'
    (layout.root / "index.json").write_bytes(content)
    with pytest.raises(InvalidDocument):
        layout.set("name", A)
    assert (layout.root / "index.json").read_bytes() == content


def test_a_broken_entry_does_not_stand_before_other_names(layout: Layout) -> None:
    broken = {"digest": 7, "annotations": {"org.opencontainers.image.ref.name": "broken"}}
    (layout.root / "index.json").write_text(json.dumps({"manifests": [broken]}))
    layout.set("good", A)
    assert layout.get("good").digest == A.digest
    with pytest.raises(InvalidDocument):
        layout.get("broken")


def test_an_index_never_grows_beyond_what_is_read(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blobtee.content.layout.MAX_INDEX", 1000)
    layout.set("first", A)
    with pytest.raises(TooLarge):
        layout.set("x" * 1000, B)
    assert list(layout.names()) == ["first"]


def test_a_link_in_the_place_of_the_new_index_leads_no_write_out_of_the_root(layout: Layout, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (layout.root / ".index.json.new").symlink_to(precious)
    with pytest.raises(StorageError):
        layout.set("name", A)
    assert precious.read_text() == "kept"


def test_an_index_beyond_all_measure_is_refused(layout: Layout) -> None:
    with (layout.root / "index.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(TooLarge):
        layout.names()


def test_a_directory_without_index_has_no_names(tmp_path: Path) -> None:
    assert Layout(tmp_path).names() == {}
    with pytest.raises(NotFound):
        Layout(tmp_path).get("name")


def test_names_set_by_many_threads_and_layouts_are_all_there(layout: Layout) -> None:
    others = [Layout(layout.root) for _ in range(4)]

    def work(number: int) -> None:
        for n in range(5):
            others[number % 4].set(f"{number}.{n}", A)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(layout.names()) == 40


def test_a_change_is_seen_whoever_makes_it(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    is_unchanged = layout.watch()
    assert is_unchanged()
    index = layout.root / "index.json"
    before = index.read_bytes()
    index.write_bytes(before.replace(b"2", b"3"))  # in place, as long as before, perhaps within one tick of the clock
    assert not is_unchanged()
    index.write_bytes(before)
    assert is_unchanged()
    layout.set("a.example/b:1", A)
    assert not is_unchanged()


def test_an_old_file_is_not_read_to_see_that_it_is_the_same(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1 << 62)
    is_unchanged = layout.watch()
    with monkeypatch.context() as patched:
        patched.setattr(Layout, "fingerprint", None)
        assert is_unchanged()
    layout.set("a.example/b:1", A)
    assert not is_unchanged()


def test_no_file_is_a_state_too(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    is_unchanged = layout.watch()
    assert is_unchanged()
    layout.set("a.example/b:1", A)
    assert not is_unchanged()
