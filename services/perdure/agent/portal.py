"""An event loop in a thread of its own, and the way into it for threads that don't await.

Invariants:
- Each call is answered: with its result, its error, or StoreClosed once the loop has ended. A call
  counts as waiting before the loop hears of it, and when the loop ends it answers all that wait.
- A caller that stops waiting (Ctrl-C) cancels what it waited for and nothing else.
- The thread ends when `end` is called, when nobody holds the portal any more, and with the process.
- In a forked child, where the thread doesn't exist, a call is an error at once and not a wait.
"""

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Final, Generic, ParamSpec, Protocol, TypeVar

from perdure.errors import StoreClosed, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_ITEMS: Final = 64
"""Items of a stream that one change of threads fetches, so that it costs little beside reading
them. With a megabyte an event, the most there can be, that is 64 MB."""


class Portal:
    """A running event loop that any thread may call into.

    `what` names in errors what was called: a store.

    >>> portal = Portal("the store")
    >>> portal.call(asyncio.sleep, 0, "here")
    'here'
    >>> portal.end()
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._loop = _Loop()
        # A daemon: a script that never closes its store ends all the same. The thread holds the
        # loop and not the portal, so that a portal nobody holds is collected and its thread ends.
        self._thread = threading.Thread(target=self._loop.serve, name="perdure-store", daemon=True)
        weakref.finalize(self, self._loop.stop).atexit = False
        self._thread.start()

    @property
    def usable(self) -> bool:
        """Whether a call can be made: before the end, and not in a forked child."""
        return not self._loop.ended and self._loop.process == os.getpid()

    def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `await function(…)` gives, run on the loop; it sees the caller's context variables.

        Raises:
            StoreClosed: the portal has ended, or belongs to the process that this one was forked
                from.
            Unavailable: called on the loop's own thread, which would wait for itself.
        """
        loop = self._loop
        if loop.process != os.getpid():
            raise StoreClosed(
                f"{self._what} was connected to by process {loop.process}, "
                f"and this one ({os.getpid()}) was forked from it",
                hint="call connect_sync in each process, after the fork",
            )
        if self._thread.ident == threading.get_ident():
            raise Unavailable(
                f"{self._what} was called on its own thread, which would wait for itself",
                hint="projections, upcasters and progress callbacks can't call the store",
            )
        call = _Call(partial(function, *args, **kwargs), loop)
        loop.waiting.add(call)
        try:
            # Looked at after it was added: from here on, the end of the loop answers the call.
            if loop.ended or not loop.post(call.start):
                raise self._closed()
            call.answered.acquire()  # Signals are handled meanwhile: Ctrl-C ends the wait.
        except BaseException:
            loop.post(call.cancel)
            raise
        finally:
            loop.waiting.discard(call)
        if call.results:
            return call.results[0]
        error, call.error = call.error, None
        if error is None or (isinstance(error, asyncio.CancelledError) and loop.ended):
            raise self._closed() from error
        try:
            raise error
        finally:
            del error  # Its traceback holds this frame: a cycle otherwise.

    def iterate(
        self, stream: Callable[[], AsyncIterator[T]], *, chunk: int = CHUNK_ITEMS
    ) -> Iterator[T]:
        """The items of an async iterator; no more than `chunk` of them are held.

        With a chunk of one, each item is given as soon as it is there.
        """
        items = stream()
        more = True
        try:
            while more:
                taken: list[T] = []
                failure: Exception | None = None
                try:
                    more = self.call(_take, items, chunk, taken)
                except Exception as error:  # noqa: BLE001 - raised after what came before it
                    failure = error
                yield from taken
                if failure is not None:
                    raise failure
        finally:
            if more and isinstance(items, AsyncGenerator):
                # Not a call: the garbage collector may do this, on any thread.
                self._loop.post(partial(self._loop.close, items))

    def end(self) -> None:
        """Cancel what is under way, answer whoever waits, end the thread. Twice is harmless."""
        if self._loop.process != os.getpid():
            return
        self._loop.stop()
        if self._thread.ident != threading.get_ident():
            self._thread.join()

    def _closed(self) -> StoreClosed:
        return StoreClosed(f"{self._what} is closed", hint="connect again")


class _Loop:
    """What the thread and the portal share."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.ended = False
        self.waiting: set[_Waiting] = set()
        # Made here: where there are no file descriptors left, the caller is told.
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    def serve(self) -> None:
        """Run the loop until it is stopped: this is the thread."""
        try:
            # Leaving the runner cancels all tasks, and a cancelled call answers its caller.
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._stopped())
        finally:
            self.ended = True
            for call in list(self.waiting):
                call.answer()

    async def _stopped(self) -> None:
        await self._stop.wait()
        self.ended = True

    def post(self, callback: Callable[[], object]) -> bool:
        """Have the loop call something soon; False where there is no loop any more."""
        if self.process != os.getpid():
            return False
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # It is closed.
            return False
        return True

    def stop(self) -> None:
        """Let the thread end; from any thread, any number of times."""
        self.post(self._stop.set)

    def close(self, items: AsyncGenerator[object, None]) -> None:
        """Close an iterator that was left before its end (on the loop)."""

        async def close() -> None:
            with contextlib.suppress(RuntimeError):  # Another thread is reading from it.
                await items.aclose()

        task = self._loop.create_task(close())
        self._closing.add(task)  # The loop itself holds tasks only weakly.
        task.add_done_callback(self._closing.discard)


class _Waiting(Protocol):
    """A call, whatever its result is."""

    def answer(self) -> None:
        """Let the caller go on, with what there is."""
        ...


class _Call(Generic[T]):
    """One call: made by the caller's thread, started and answered on the loop's."""

    # A bare lock, not a Future: a call takes 15 % less; the rest is the change of threads.
    __slots__ = ("_function", "_loop", "_task", "answered", "error", "results")

    def __init__(self, function: Callable[[], Awaitable[T]], loop: _Loop) -> None:
        self.results: list[T] = []
        self.error: BaseException | None = None
        self.answered = threading.Lock()
        self.answered.acquire()
        self._function = function
        self._loop = loop
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin (on the loop)."""
        if self._loop.ended:
            self.answer()
        else:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        """Stop, because nobody waits any more (on the loop)."""
        if self._task is not None:
            self._task.cancel()

    def answer(self) -> None:
        """Let the caller go on, with what there is."""
        with contextlib.suppress(RuntimeError):  # It was answered already.
            self.answered.release()

    async def _run(self) -> None:
        try:
            self.results.append(await self._function())
        except BaseException as error:  # noqa: BLE001 - all are the caller's, SystemExit included
            self.error = error
        self.answer()


async def _take(items: AsyncIterator[T], count: int, taken: list[T]) -> bool:
    """Append the next items to `taken`, at most `count`; whether there may be more."""
    while len(taken) < count:
        try:
            taken.append(await anext(items))
        except StopAsyncIteration:
            return False
    return True
