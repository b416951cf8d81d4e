"""Events on their way to a client: read ahead, written together, stopped when nobody listens.

Every flow ends with one Finish per choice or with one Failure, whatever its source does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..wire.chat import Event, Failure, Finish, Usage
from .replies import as_failure, known
from .shapes import Shape

log = logging.getLogger("baseload.server")
T = TypeVar("T")

KEEP_ALIVE_S = 5.0  # silence after which a sign of life tells clients and proxies that the stream lives
READ_AHEAD = 256  # events held for a slow reader before the source has to wait
WRITE_BYTES = 65_536  # in one piece: a slow reader's progress shows when a piece has gone
REQUEST_ID = "x-baseload-request-id"


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`, which is cancelled, and ClientGone raised, as soon as the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventFlow:
    """The events of one answer, read ahead of whoever writes them.

    The source is read to its end, past the last Finish: it does its books there. `close` stops it at once.
    """

    def __init__(self, events: AsyncGenerator[Event, None], choices: int, request_id: str) -> None:
        self._events = events
        self._unfinished = set(range(choices))
        self.request_id = request_id
        self._buffer: list[Event] = []
        self._closed = False  # the end has been put into the buffer
        self._waiter: asyncio.Future[bool] | None = None  # of whoever waits for an event
        self._room = asyncio.Event()
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(lambda _: self._wake(True))

    async def take(self, timeout_s: float | None = None) -> list[Event] | None:
        """All events that are ready, waiting for the first; [] after `timeout_s`; None after the end."""
        if not await self._filled(timeout_s):
            return []
        self._room.set()
        taken, self._buffer = self._buffer, []
        return taken or None

    async def first(self, timeout_s: float) -> Event | None:
        """The first event, left where it is; None if it has not come after `timeout_s`."""
        await self._filled(timeout_s)
        return self._buffer[0] if self._buffer else None

    def end(self, failure: Failure) -> None:
        """Stop the source; the flow ends with `failure` unless it has ended already."""
        self._put(failure)
        self._reader.cancel()

    async def close(self) -> None:
        """Stop the source and wait until it has stopped."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._events.aclose()  # a reader cancelled before its first step has not come to do it

    async def _filled(self, timeout_s: float | None) -> bool:
        """Whether there is an event, or the end, within the time. Once a token: so a bare future, and not asyncio.timeout."""
        if self._buffer or self._reader.done():
            return True
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, self._wake, False) if timeout_s is not None else None
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self, filled: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(filled)

    async def _read(self) -> None:
        try:
            async with aclosing(self._events):
                async for event in self._events:
                    self._put(event)
                    while len(self._buffer) >= READ_AHEAD:
                        self._room.clear()
                        await self._room.wait()
        except Exception as error:
            self._put(as_failure(known(error, self.request_id)))
        self._put(Failure("The answer broke off before its end."))

    def _put(self, event: Event) -> None:
        if self._closed:
            return
        if isinstance(event, Finish):
            self._unfinished.discard(event.index)
        self._closed = isinstance(event, Failure) or not self._unfinished
        self._buffer.append(event)
        self._wake(True)


async def collect(flow: EventFlow, saw: Callable[[Sequence[Event]], None]) -> list[Event]:
    """All events of `flow`; each batch is shown to `saw` when it comes."""
    events: list[Event] = []
    while (batch := await flow.take()) is not None:
        saw(batch)
        events += batch
    return events


async def together(sources: Sequence[AsyncGenerator[Event, None]], choices: int) -> AsyncGenerator[Event, None]:
    """Several prompts' events as one answer of `len(sources) * choices` choices; usage is summed.

    Choice c of prompt p becomes choice p * choices + c. The first Failure ends them all.
    """
    queue: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue(READ_AHEAD)
    tasks = [asyncio.create_task(_forward(i, source, queue)) for i, source in enumerate(sources)]
    usages: dict[int, Usage] = {}
    running = len(tasks)
    try:
        while running:
            prompt, event = await queue.get()
            if event is None:
                running -= 1
            elif isinstance(event, Usage):
                usages[prompt] = event
                yield _sum(usages)
            elif isinstance(event, Failure):
                yield event
                return
            else:
                yield replace(event, index=prompt * choices + event.index)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(prompt: int, source: AsyncGenerator[Event, None], queue: asyncio.Queue[tuple[int, Event | None]]) -> None:
    try:
        async with aclosing(source):
            async for event in source:
                await queue.put((prompt, event))
    except Exception as error:
        await queue.put((prompt, as_failure(known(error, f"prompt {prompt}"))))
    await queue.put((prompt, None))


def _sum(usages: Mapping[int, Usage]) -> Usage:
    return Usage(
        sum(u.prompt_tokens for u in usages.values()),
        sum(u.completion_tokens for u in usages.values()),
        sum(u.cached_tokens for u in usages.values()),
        sum(u.reasoning_tokens for u in usages.values()),
    )


class Renderer(Protocol):
    """Turns events into a protocol's chunks, its last words included.

    `plain` is the one chunk of an event that is mere text, framed: nearly every event of a stream is. None for others.
    """

    def events(self, event: Event, /) -> Sequence[Mapping[str, Any] | str]: ...
    def plain(self, event: Event, /) -> bytes | None: ...


class EventStream(Response):
    """A flow as its protocol streams it. Headers go out at once; what is ready together goes out in one write.

    `done(gone)` is called when the stream is over, with whether the client left before its end.
    """

    def __init__(
        self,
        flow: EventFlow,
        renderer: Renderer,
        shape: Shape,
        headers: Mapping[str, str],
        saw: Callable[[Sequence[Event]], None],
        done: Callable[[bool], Coroutine[Any, Any, None]],
    ) -> None:
        looks = {"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
        super().__init__(headers=looks, media_type=shape.media_type)
        del self.headers["content-length"]
        self._flow, self._renderer, self._shape, self._saw, self._done = flow, renderer, shape, saw, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = True
        try:
            await unless_gone(self._write(send), receive)
            gone = False
        except ClientGone:
            pass
        finally:
            await self._done(gone)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while (batch := await self._flow.take(KEEP_ALIVE_S)) is not None:
            self._saw(batch)
            data = self._chunks(batch) if batch else self._shape.ping
            for start in range(0, len(data), WRITE_BYTES):
                await send({"type": "http.response.body", "body": data[start : start + WRITE_BYTES], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _chunks(self, batch: Sequence[Event]) -> bytes:
        try:
            return b"".join(map(self._written, batch))
        except Exception as error:
            failure = as_failure(known(error, self._flow.request_id))
            self._flow.end(failure)
            self._renderer = _Silent()
            return self._shape.frame((self._shape.cut or self._shape.failure)(failure)) + self._shape.done

    def _written(self, event: Event) -> bytes:
        if (plain := self._renderer.plain(event)) is not None:
            return plain
        return b"".join(self._shape.frame(chunk) for chunk in self._renderer.events(event))


class _Silent:
    """The renderer of a stream whose last words have been said."""

    def events(self, event: Event, /) -> Sequence[Mapping[str, Any] | str]:
        return ()

    def plain(self, event: Event, /) -> bytes | None:
        return None
