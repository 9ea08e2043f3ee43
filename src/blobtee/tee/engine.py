"""Fetching what is missing of one blob, each byte once (`spec/tee.md` section 1, rules 3 and 4).

Who needs chunks says so and waits; threads of the engine bring them. What is under way for somebody is waited for by
everybody else, here by a list of fetches, between processes by claims (`tee.claims`). A fetch that nobody waits for any
more ends.
"""

from __future__ import annotations

import contextvars
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from blobtee import tasks
from blobtee.content.files import Writeback
from blobtee.errors import BlobteeError, Closed, DigestMismatch, LazyUnavailable, ResourceExhausted
from blobtee.tee.map import CHUNK, chunks_of
from blobtee.tee.pace import Pace
from blobtee.tee.partial import CHECKPOINT_SECONDS, Partial
from blobtee.tee.source import Source, Stream

_logger = logging.getLogger(__name__)

BUFFER = 1 << 20
"""Bytes of the buffers that a `Sink` gets and gives, but for a blob of less."""

_PATIENCE = 0.2
"""Seconds that a reader waits for a fill to come to what he wants, rather than asking for it apart."""

_POLL = 0.02
"""Seconds between two looks at what another process is fetching."""


class Sink(Protocol):
    """Has what comes and is kept while it is in memory."""

    def coming(self, offset: int) -> None:
        """What is at `offset` is about to be kept, and then handed over."""
        ...

    def take(self, offset: int, buffer: bytearray, nbytes: int) -> bytearray:
        """Has the first `nbytes` of `buffer`, and gives a buffer to go on with, the same or another."""
        ...


class Filling(Protocol):
    @property
    def done(self) -> bool: ...


class Fetch:
    """One request: chunks [at, last) are still to come by it."""

    def __init__(self, first: int, last: int, source: Source, *, filling: bool = False) -> None:
        """`filling`: it stands back for those who wait, but for those who wait for it; and leaves what they want of its
        far end to them."""
        self.at = first
        self.last = last
        self.source = source
        self.filling = filling
        self.waiting = 0
        self.foreground = 0
        """How many of those who wait are not in the background."""
        self.in_hand = first
        """Chunks before this one are in memory already."""
        self.whole = False
        """It is one body of everything: there is nothing to leave to others."""
        allowance = tasks.background()
        self.limited = allowance is not None and allowance.limited
        """It keeps to a bandwidth, unless it is hurried."""
        self.first = first
        self.begun = time.monotonic()
        self.cancellation = tasks.Cancellation()
        self.error: BaseException | None = None

    def end(self, stream: Stream) -> int:
        """Where the bytes end that are wanted of `stream`."""
        return stream.end if self.whole else min(stream.end, self.last * CHUNK)

    def promise(self, seconds: float) -> float:
        """Bytes that it will bring in so many seconds, by what was seen; of one that is younger nobody knows, and one
        that is limited should not be hurried for it."""
        if self.limited:
            return 0
        age = time.monotonic() - self.begun
        return seconds / age * (self.at - self.first) * CHUNK if age > seconds else math.inf


class _Waiter:
    def __init__(self, first: int, last: int, foreground: bool = True) -> None:
        self.first = first
        self.last = last
        self.foreground = foreground
        self.woken = threading.Event()


class Engine:
    """Brings chunks of `partial`. Thread-safe. `pace` knows how fast the sources are, and who goes first."""

    def __init__(self, partial: Partial, pace: Pace) -> None:
        self._partial = partial
        self._map = partial.map
        self._pace = pace
        self._lock = threading.Lock()
        self._fetches: list[Fetch] = []
        self._waiters: set[_Waiter] = set()
        self._threads: set[threading.Thread] = set()
        self._settler: threading.Thread | None = None
        self._due = threading.Event()
        self._closed = False
        self.on_mark: Callable[[], None] = lambda: None
        """Called after chunks have come, and the sink has had them."""

    # ---- for readers ------------------------------------------------------------------------------------------------

    def bring(self, first: int, last: int, source: Source, *, ahead: int = 0) -> None:
        """Return when the chunks [first, last) are here; up to `ahead` more may be asked for in the same breath.

        Errors are those of `source`; what fails for somebody else's is tried by it. `Cancelled` when this waiter gives
        up, which disturbs no other.
        """
        failed: BaseException | None = None
        foreground = tasks.background() is None
        waited = False
        while not self._partial.is_here(first, last):
            if failed is not None:
                raise failed
            waiter = _Waiter(first, last, foreground)
            with self._lock:
                fetches = self._plan(first, last, ahead, source, patient=not waited)
                for fetch in fetches:
                    fetch.waiting += 1
                    fetch.foreground += foreground
                self._waiters.add(waiter)
            with self._telling(waiter, fetches):
                self._wait(waiter, fetches)
            waited = True
            # One that was given up by those before us says nothing of the source.
            mine = [
                fetch.error
                for fetch in fetches
                if fetch.error is not None and fetch.source is source and not fetch.cancellation.cancelled
            ]
            failed = mine[0] if mine else None

    def await_chunks(self, first: int, last: int, filling: Filling) -> None:
        """Wait until the chunks [first, last) have come by somebody's doing, or `filling` is done."""
        waiter = _Waiter(first, last)
        with self._lock:
            self._waiters.add(waiter)
        try:
            while not self._partial.is_here(first, last) and not filling.done:
                tasks.check()
                waiter.woken.wait(_POLL)
                waiter.woken.clear()
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def _telling(self, waiter: _Waiter, fetches: list[Fetch]) -> AbstractContextManager[None]:
        """Have those stand back who are not waited for."""
        if not waiter.foreground:
            return nullcontext()
        if not fetches:
            return self._partial.claims.wanting(waiter.first, waiter.last)
        # Who waits for a fill wants it to go on.
        return nullcontext() if any(fetch.filling for fetch in fetches) else self._pace.foreground()

    def _wait(self, waiter: _Waiter, fetches: list[Fetch]) -> None:
        leave = tasks.current().on_cancel(waiter.woken.set)
        impatient = waiter.foreground and any(fetch.filling for fetch in fetches)
        try:
            while not self._partial.is_here(waiter.first, waiter.last):
                tasks.check()
                # Without a fetch of ours to tell, it is another process that brings them.
                woken = waiter.woken.wait((_PATIENCE if impatient else None) if fetches else _POLL)
                waiter.woken.clear()
                if not fetches or not woken or any(self._is_over(fetch) for fetch in fetches):
                    return
        finally:
            leave()
            with self._lock:
                self._waiters.discard(waiter)
                for fetch in fetches:
                    fetch.waiting -= 1
                    fetch.foreground -= waiter.foreground
                abandoned = [fetch for fetch in fetches if not fetch.waiting and tasks.current().cancelled]
            for fetch in abandoned:
                fetch.cancellation.cancel("nobody waits for it any more")

    def _is_over(self, fetch: Fetch) -> bool:
        with self._lock:
            return fetch not in self._fetches

    def _plan(self, first: int, last: int, ahead: int, source: Source, *, patient: bool) -> list[Fetch]:
        """The fetches that [first, last) has to wait for, started where there were none. With the lock held.

        `patient`: a fill that will be there in a moment is waited for.
        """
        self._check_open()
        waits: list[Fetch] = []
        at = first
        while (at := self._map.next_absent(at, last)) < last:
            under_way = next((fetch for fetch in self._fetches if fetch.at <= at < fetch.last), None)
            if under_way is not None and tasks.background() is None and self._cut(under_way, at, patient):
                under_way = None
            if under_way is None:
                end = self._run_end(at, last, ahead)
                under_way = self._start(at, end, source) if end > at else None
            if under_way is None:
                # Another process has it.
                at += 1
                continue
            waits.append(under_way)
            at = under_way.last
        return waits

    def _run_end(self, at: int, last: int, ahead: int) -> int:
        """How far one request from `at` on should go: small gaps of what is here already cost less than another."""
        limit = min(last + ahead, self._partial.chunks)
        for fetch in self._fetches:
            if fetch.last > at and fetch.at < limit:
                limit = max(at, min(limit, fetch.at))
        gap = self._pace.gap // CHUNK
        end = self._map.next_present(at, limit)
        while end < min(last, limit):
            following = self._map.next_absent(end, limit)
            if following >= last or following - end > gap:
                break
            end = self._map.next_present(following, limit)
        return end

    # ---- fetching ---------------------------------------------------------------------------------------------------

    def _start(self, first: int, last: int, source: Source) -> Fetch | None:
        """A fetch of [first, last), or of as much from `first` on as no other process is at, in a thread of its own."""
        fetch = self.claim(first, last, source, filling=tasks.background() is not None)
        if fetch is None:
            return None
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._run, fetch), name="blobtee-tee", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            self._threads.discard(thread)
            self._release(fetch)
            raise ResourceExhausted(f"no thread to be had: {error}") from error
        return fetch

    def claim(self, first: int, last: int, source: Source, *, filling: bool = False) -> Fetch | None:
        """A fetch of [first, last), or as much of it as nobody is at, entered in the list: run it. With the lock
        held."""
        first = self._map.next_absent(first, last)
        for other in self._fetches:
            if other.at <= first < other.last:
                return None
            if first < other.at < last:
                last = other.at
        claims = self._partial.claims
        while first < last and not claims.take(first, last):
            last = claims.free(first, last)
        if first >= last:
            return None
        # Who had it until now may just have brought it.
        begin = self._map.next_absent(first, last)
        claims.give(first, begin)
        if begin == last:
            return None
        fetch = Fetch(begin, last, source, filling=filling)
        self._fetches.append(fetch)
        return fetch

    def claim_next(self, chunks: int, source: Source, *, filling: bool = False, whole: bool = False) -> Fetch | None:
        """A fetch of at most `chunks` chunks from the first on that is missing and that nobody is at; None without
        one. `whole`: see `Fetch`."""
        with self._lock:
            self._check_open()
            at = 0
            while (at := self._map.next_absent(at, self._partial.chunks)) < self._partial.chunks:
                last = self._map.next_present(at, min(at + chunks, self._partial.chunks))
                fetch = self.claim(at, last, source, filling=filling)
                if fetch is not None:
                    fetch.whole = whole
                    return fetch
                at = min((other.last for other in self._fetches if other.at <= at < other.last), default=at + 1)
        return None

    def _cut(self, fetch: Fetch, at: int, patient: bool) -> bool:
        """Take the chunks from `at` on off a filling fetch, when it is not about to come to them; False otherwise. With
        the lock held."""
        distance = (at - fetch.in_hand) * CHUNK
        if not fetch.filling or fetch.whole or distance <= self._pace.gap:
            return False
        if patient and distance <= fetch.promise(_PATIENCE):
            return False
        self._partial.claims.give(at, fetch.last)
        fetch.last = at
        return True

    def is_hurried(self, fetch: Fetch) -> bool:
        """Whether somebody who is not in the background waits for what comes next. What other processes want of the far
        end of a filling fetch, is left to them."""
        with self._lock:
            wanted = self._partial.claims.wanted(fetch.at, fetch.last)
            left = wanted < fetch.last and self._cut(fetch, wanted, patient=True)
            return fetch.foreground > 0 or (wanted < fetch.last and not left)

    def _release(self, fetch: Fetch) -> None:
        self._fetches.remove(fetch)
        if fetch.at < fetch.last:
            self._partial.claims.give(fetch.at, fetch.last)

    def _run(self, fetch: Fetch) -> None:
        throttle = self._pace.throttle(lambda: self.is_hurried(fetch)) if fetch.filling else None
        try:
            self.run(fetch, throttle=throttle)
        except BaseException as error:
            fetch.error = error
        finally:
            self._threads.discard(threading.current_thread())

    def run(self, fetch: Fetch, sink: Sink | None = None, throttle: Callable[[int], None] | None = None) -> None:
        """Bring what `fetch` is for, in this thread; raises what goes wrong, and either way it is over afterwards.

        `sink` sees what comes in order; `throttle` is told of each piece and may take its time.
        """
        own = [fetch]
        with tasks.scope(fetch.cancellation):
            try:
                start, end = fetch.at * CHUNK, min(fetch.last * CHUNK, self._partial.size)
                begun = time.monotonic()
                stream = fetch.source.stream(start, end)
                self._pace.answered(time.monotonic() - begun)
                leave = fetch.cancellation.on_cancel(stream.close)
                try:
                    if (stream.position, stream.end) != (start, end):
                        # Nobody there knows ranges: it will not be asked twice.
                        own += self._claim_all(fetch)
                    self._pump(own, stream, sink, throttle)
                finally:
                    leave()
                    stream.close()
                self._pace.moved(stream.position - start, time.monotonic() - begun)
            except BlobteeError as error:
                for each in own:
                    each.error = error
                # A stream that was closed under its reader says whatever it says.
                fetch.cancellation.check()
                raise
            finally:
                with self._lock:
                    for each in own:
                        self._release(each)
                self._wake(0, self._partial.chunks)

    def _claim_all(self, leading: Fetch) -> list[Fetch]:
        """Everything that is missing and that nobody is at."""
        with self._lock:
            leading.whole = True
        claimed: list[Fetch] = []
        while fetch := self.claim_next(self._partial.chunks, leading.source, filling=leading.filling, whole=True):
            claimed.append(fetch)
        return claimed

    def _pump(
        self, own: list[Fetch], stream: Stream, sink: Sink | None, throttle: Callable[[int], None] | None
    ) -> None:
        size = self._partial.size
        buffer = bytearray(min(BUFFER, -(-(stream.end - stream.position) // CHUNK) * CHUNK))
        background = tasks.background()
        most = len(buffer) if background is None else background.piece
        base = stream.position
        filled = 0
        writeback = Writeback(base)
        while base + filled < (end := own[0].end(stream)):
            with memoryview(buffer) as view:
                with view[filled : min(filled + most, end - base)] as rest:
                    n = stream.readinto(rest)
                if not n:
                    raise LazyUnavailable(f"blob {self._partial.digest} ended at byte {base + filled} of {stream.end}")
                tasks.check()
                with self._lock:
                    filled = min(filled + n, own[0].end(stream) - base)
                    ready = filled if base + filled == size else filled - filled % CHUNK
                    own[0].in_hand = chunks_of(base + ready)
                # What was here already stays, and is what has to be hashed: it may be somebody else's bytes.
                handed = sink if sink is not None and ready and self._is_missing(own, base, ready) else None
                if ready:
                    if handed is not None:
                        handed.coming(base)
                    with view[:ready] as whole:
                        self._keep(own, base, whole)
                    writeback.written(self._partial.fd, base + ready)
            if ready:
                left = bytes(memoryview(buffer)[ready:filled])
                if handed is not None:
                    buffer = handed.take(base, buffer, ready)
                self.on_mark()
                buffer[: len(left)] = left
                base += ready
                filled = len(left)
            if throttle is not None:
                throttle(n)

    def _is_missing(self, own: list[Fetch], offset: int, nbytes: int) -> bool:
        """Whether every chunk there is for one of `own` to bring: nobody else writes any then."""
        at, last = offset // CHUNK, chunks_of(offset + nbytes)
        if self._map.next_present(at, last) < last:
            return False
        while at < last and (fetch := next((each for each in own if each.at <= at < each.last), None)):
            at = fetch.last
        return at >= last

    def _keep(self, own: list[Fetch], offset: int, data: memoryview) -> None:
        """Write what has come, as far as it is for one of `own` and is not here already."""
        first = offset // CHUNK
        last = first + chunks_of(data.nbytes)
        bad: list[int] = []
        for fetch in own:
            at, end = max(first, fetch.at), min(last, fetch.last)
            while at < end and (at := self._map.next_absent(at, end)) < end:
                until = self._map.next_present(at, end)
                with data[(at - first) * CHUNK : (until - first) * CHUNK] as part:
                    bad += self._partial.write(at, part)
                at = until
            with self._lock:
                if fetch.at < end:
                    self._partial.claims.give(fetch.at, end)
                    fetch.at = end
        if bad:
            own[0].source.reject()
            raise DigestMismatch(f"chunk {bad[0]} of blob {self._partial.digest}", "the blob's", "another")
        self._wake(first, last)
        self._settle()

    def _wake(self, first: int, last: int) -> None:
        """Wake who waits for any of the chunks [first, last)."""
        with self._lock:
            for waiter in self._waiters:
                if waiter.first < last and first < waiter.last:
                    waiter.woken.set()

    def _settle(self) -> None:
        """Have a thread see to checkpoints while there is something for one: what comes should not wait for the disk,
        and what came last not for what comes next."""
        with self._lock:
            if self._settler is None and not self._closed:
                self._settler = threading.Thread(target=self._settling, name="blobtee-checkpoint", daemon=True)
                try:
                    self._settler.start()
                except RuntimeError:
                    self._settler = None
        if self._partial.due_in == 0:
            self._due.set()

    def _settling(self) -> None:
        while True:
            with self._lock:
                left = self._partial.due_in
                if left is None or self._closed:
                    self._settler = None
                    return
            if left > 0:
                self._due.wait(left)
                self._due.clear()
                continue
            try:
                with tasks.shield():
                    self._partial.checkpoint()
            except BlobteeError as error:
                # What it lost is fetched again by whoever needs it, and a disk that stays so says so there.
                _logger.warning("%s", error)
                self._due.wait(CHECKPOINT_SECONDS)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End what is under way, and wait for it."""
        with self._lock:
            self._closed = True
            fetches = list(self._fetches)
            settler = self._settler
        for fetch in fetches:
            fetch.cancellation.cancel("the blob was closed")
        self._due.set()
        for thread in [*self._threads, *([settler] if settler else [])]:
            thread.join()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the partial blob {self._partial.digest} is closed")
