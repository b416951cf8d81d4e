"""A local engine as a Backend: chat template and tokenizer before it, events after it."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Sequence

from ..wire.backend import ModelInfo
from ..wire.chat import ChatRequest, Event, Failure, Finish, TextDelta, Usage
from ..wire.errors import BadRequest, BaseloadError
from .engine import Engine, GenerationRequest, GenerationStream, TokenOutput
from .models.model_file import LoadedModel

log = logging.getLogger("baseload.runtime")

OFF_LOOP_CHARS = 20_000  # a longer prompt is rendered and tokenised in a thread, so that no stream waits for it


class LocalBackend:
    """One model on one engine, under one name."""

    def __init__(self, model: LoadedModel, engine: Engine, name: str) -> None:
        self._model, self._engine = model, engine
        self._ids = itertools.count()
        self._info = ModelInfo(
            id=name, context_length=engine.longest, tools=model.template.knows_tools, created=int(time.time())
        )

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The one model."""
        return (self._info,)

    def count_tokens(self, request: ChatRequest) -> int:
        """The prompt's length in tokens. Raises BadRequest for one that cannot be rendered."""
        return len(self._encode(request))

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See Backend.generate."""
        try:
            ids = await self._prompt(request)
            streams = self._submit(request, ids)
        except BaseloadError as error:
            yield _failure(error)
            return
        except Exception:
            log.exception("a prompt could not be made into tokens")
            yield Failure("The prompt could not be made into tokens.")
            return
        try:
            if request.echo:
                text = request.prompt if isinstance(request.prompt, str) else self._model.tokenizer.decode(list(ids))
                for index in range(request.sampling.n):
                    yield TextDelta(text, index)
            async for event in _events(streams):
                yield event
        finally:
            for stream in streams:
                await stream.aclose()

    async def _prompt(self, request: ChatRequest) -> tuple[int, ...]:
        size = len(request.prompt or "") + sum(len(m.text) for m in request.messages)
        if size <= OFF_LOOP_CHARS and not request.tools:
            return self._encode(request)
        return await asyncio.to_thread(self._encode, request)

    def _encode(self, request: ChatRequest) -> tuple[int, ...]:
        if request.prompt is None:
            return tuple(self._model.template.encode(request, self._model.tokenizer))
        if not isinstance(request.prompt, str):
            return request.prompt
        tokenizer = self._model.tokenizer
        bos = [tokenizer.bos_id] if self._model.config.add_bos and tokenizer.bos_id is not None else []
        ids = (*bos, *tokenizer.encode(request.prompt, specials=False))
        if not ids:
            raise BadRequest("The prompt is empty.", param="prompt")
        return ids

    def _submit(self, request: ChatRequest, ids: tuple[int, ...]) -> list[GenerationStream]:
        streams: list[GenerationStream] = []
        try:
            for choice in range(request.sampling.n):
                asked = GenerationRequest(f"{self._info.id}-{next(self._ids)}", ids, request.sampling, choice)
                streams.append(self._engine.submit(asked))
        except BaseloadError:
            for stream in streams:
                self._engine.abort(stream.request_id)
            raise
        return streams


async def _events(streams: Sequence[GenerationStream]) -> AsyncGenerator[Event, None]:
    """All choices' outputs as one stream of events: usage at the first token, and again before the last finish."""
    open_choices, completion, begun = len(streams), 0, False
    async for index, output in _merged(streams):
        if output.failure:
            yield output.failure
            return
        completion += len(output.token_ids)
        if not begun:
            begun = True
            yield Usage(output.prompt_tokens, completion, output.cached_tokens)
        if output.text or output.logprobs or not output.is_last:
            yield TextDelta(output.text, index, len(output.token_ids), output.logprobs)
        if output.finish:
            open_choices -= 1
            if not open_choices:
                yield Usage(output.prompt_tokens, completion, output.cached_tokens)
            yield Finish(output.finish, index, output.matched_stop)


async def _merged(streams: Sequence[GenerationStream]) -> AsyncGenerator[tuple[int, TokenOutput], None]:
    if len(streams) == 1:
        async for output in streams[0]:
            yield 0, output
        return
    queue: asyncio.Queue[tuple[int, TokenOutput]] = asyncio.Queue()

    async def forward(index: int, stream: GenerationStream) -> None:
        async for output in stream:
            queue.put_nowait((index, output))

    tasks = [asyncio.create_task(forward(i, s)) for i, s in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            index, output = await queue.get()
            left -= output.is_last
            yield index, output
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _failure(error: BaseloadError) -> Failure:
    return Failure(error.message, error.status, error.kind, error.code, error.retryable, error.retry_after)
