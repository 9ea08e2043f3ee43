"""What the content service has answered before, for the core to answer again without Python (`core.Answers`).

That an answer may be given again must follow from two things alone: nothing was committed to the metadata, and the
blob's file is the one it was. So it is for a blob that is here and that the tenant holds: row, reference and file say
all. Who only might hold it has no answer yet, and a lazy blob has no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blobtee.content import LocalStore
from blobtee.content.api import ReaderAt
from blobtee.content.files import FileReader
from blobtee.content.lastuse import RESOLUTION_NS
from blobtee.core import Answers, Counts
from blobtee.core.answers import FILE, MAX_ANSWER, MESSAGE, Look
from blobtee.oci import Digest
from blobtee.plugin.metrics import BOUNDS

FILES = 128
"""Blobs that are kept open, at most."""

MESSAGES_NBYTES = 8 << 20


class Remembering:
    """Keeps answers; this one has no place for them."""

    def look(self, place: int, digest: Digest) -> Sight:
        """To be called before anything is looked at that the answer depends on."""
        return _BLIND

    def forget(self, place: int, digest: Digest) -> None:
        """Keep nothing open of what that place has let go of."""


class Sight:
    """What was seen of one blob, to keep the answer by. This one keeps none."""

    def keep_info(self, answer: bytes) -> None:
        """The answer to `Info`."""

    def keep_reader(self, reader: ReaderAt) -> None:
        """What `Read` reads from; it stays the caller's."""


class Remembered(Remembering):
    """Of all tenants of one store. Thread-safe."""

    def __init__(self, store: LocalStore, answers: Answers) -> None:
        self._path = store.path
        self.answers = answers

    @classmethod
    def of(cls, store: LocalStore) -> Remembered | None:
        """None: changes of the store's metadata cannot be told."""
        watch = store.metadata.watch()
        if watch is None:
            return None
        limits = {"messages_nbytes": MESSAGES_NBYTES, "files": FILES}
        return cls(store, Answers(watch, **limits, fresh_ns=RESOLUTION_NS, bounds=BOUNDS))

    def look(self, place: int, digest: Digest) -> Sight:
        path = self._path(digest)
        look = self.answers.look(path)
        return _BLIND if look is None else _Sight(self.answers, place, digest, path, look)

    def forget(self, place: int, digest: Digest) -> None:
        self.answers.forget(place, digest)

    def counts(self, place: int) -> Callable[[], Mapping[str, Counts]]:
        """What reads the counts of one place, by method."""
        answers = self.answers
        return lambda: {"Info": answers.counts(MESSAGE, place), "Read": answers.counts(FILE, place)}


class _Sight(Sight):
    def __init__(self, answers: Answers, place: int, digest: Digest, path: str, look: Look) -> None:
        self._answers = answers
        self._place = place
        self._digest = digest
        self._path = path
        self._look = look

    def keep_info(self, answer: bytes) -> None:
        if len(answer) <= MAX_ANSWER:
            self._answers.keep_message(self._place, self._digest, self._path, self._look, answer)

    def keep_reader(self, reader: ReaderAt) -> None:
        if isinstance(reader, FileReader):
            self._answers.keep_file(self._place, self._digest, self._path, self._look, reader.fileno())


_BLIND = Sight()
NOTHING = Remembering()
