"""The local model as a Backend: a request in the neutral language to token ids, the engine's outputs to events."""

import asyncio
import logging
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace

from llguidance import LLMatcher

from ..wire.backend import ModelInfo
from ..wire.chat import ChatRequest, Event, Failure, Finish, Receipt, SamplingParams, TextDelta, Usage
from ..wire.errors import BadRequest, BaseloadError, ContextLengthExceeded, InternalError
from .engine import Engine, GenerationRequest, GenerationStream, TokenOutput
from .engine.grammar import Grammar
from .engine.thought import AfterThought, Marks
from .grammars import GrammarCompiler
from .models.answer_parser import AnswerParser
from .models.model_file import LoadedModel
from .receipts import receipt, tokens_digest

log = logging.getLogger("baseload.local")

LONG_PROMPT = 20_000  # characters of a plain prompt; tokenising more would stall the event loop
N_THREADS = 2  # for templates and long prompts
SIGNALS: tuple[str, ...] = ("margin_mean", "margin_least")  # what Usage tells of TokenOutput.margins
OWN_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # that a model may have a wish for

Indexed = tuple[int, TokenOutput]  # (choice, output)


Lend = Callable[[], AbstractAsyncContextManager[Engine]]  # the model's engine, for as long as the block runs


def always(engine: Engine) -> Lend:
    """Lends an engine that is always there."""

    @asynccontextmanager
    async def lend() -> AsyncIterator[Engine]:
        yield engine

    return lend


class LocalBackend:
    """A model in this process, behind wire.backend.Backend."""

    def __init__(
        self,
        model: LoadedModel,
        lend: Lend,
        name: str,
        longest: int,
        created: int = 0,
        sampling: Mapping[str, float] | None = None,
        max_output: int = 0,
    ) -> None:
        """`lend` gives the engine that runs `model`, loading it if need be; `name` is what clients call it, `longest` the
        longest sequence in tokens, `created` its unix time, `sampling` what holds where a client says nothing (else the
        model's own generation_config.json does), `max_output` the longest answer in tokens (0: what the context leaves)."""
        self._max_output = max_output
        own = model.config.default_sampling if sampling is None else sampling
        self._sampling = {name: own[name] for name in OWN_SAMPLING if own.get(name) is not None}
        self._model, self._lend, self._longest = model, lend, longest
        self._threads = ThreadPoolExecutor(N_THREADS, "prompt")
        self._grammars = GrammarCompiler(model.tokenizer, model.config.decoder.vocab)
        self._longest_token = model.tokenizer.longest_token
        info = ModelInfo(name, longest, local=True, tools=model.template.knows_tools, created=created)
        self.models = (info,)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See Backend.generate."""
        try:
            grammar = await self._grammar(request)
            prompt = await self._encode(request)
            async with self._lend() as engine, aclosing(self._answer(engine, request, prompt, grammar)) as events:
                async for event in events:
                    yield event
        except BaseloadError as error:
            yield _failure(error)
        except Exception:
            log.exception("a request failed outside of the engine")
            yield _failure(InternalError("Something went wrong here; the log has the details."))

    def count_tokens(self, request: ChatRequest) -> int:
        """See Backend.count_tokens; of a hopelessly long prompt, how many it has at least. Blocks while the template runs."""
        at_least = _n_bytes(request) // self._longest_token
        return at_least if at_least >= self._longest else len(self._tokens(request))

    def token_ids(self, request: ChatRequest, *, begun: bool = True, bare: bool = False) -> Sequence[int]:
        """See Tokenizing.token_ids."""
        self._bearable(request)
        return self._tokens(request, begun=begun, bare=bare)

    def text_of(self, ids: Sequence[int]) -> str:
        """See Tokenizing.text_of."""
        size = self._model.tokenizer.vocab_size
        if unknown := next((i for i in ids if i >= size), None):
            raise BadRequest(f"There is no token {unknown}: this model's vocabulary has {size}.", param="tokens")
        return self._model.tokenizer.decode(ids, skip_special=False)

    def close(self) -> None:
        """Let the template's process and the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._grammars.close()
        self._model.template.close()

    async def _grammar(self, request: ChatRequest) -> Grammar | None:
        """What the answer must keep to. Raises BadRequest."""
        if request.tools and request.tool_choice not in ("auto", "none"):
            named = request.tool_choice["name"] if isinstance(request.tool_choice, Mapping) else None
            tools = [tool for tool in request.tools if named in (None, tool.name)]
            lark = self._model.template.dialect.forced(tools, parallel=request.parallel_tool_calls and named is None)
            return await self._grammars.compiled(LLMatcher.grammar_from_lark(lark), "tools")
        if request.response_format.kind == "text":
            return None
        return await self._grammars.of_format(request.response_format)

    def _thoughtful(self, request: ChatRequest, prompt: Sequence[int]) -> Callable[[Grammar], Grammar | AfterThought]:
        """A grammar as it holds for this model's answer: after its reasoning, where it may reason."""
        marks = self._model.template.thought_marks
        if marks is None or request.prompt is not None or (begun := self._end_of(prompt)).endswith(marks[1]):
            return lambda grammar: grammar
        ids = [tuple(self._model.tokenizer.encode(mark, specials=True)) for mark in marks]
        known = Marks(ids[0], ids[1], marks[1].encode())
        return lambda grammar: AfterThought(grammar, known, begun=begun.endswith(marks[0]))

    def _end_of(self, prompt: Sequence[int]) -> str:
        return self._model.tokenizer.decode(prompt[-8:], skip_special=False).rstrip()

    def _parser(self, request: ChatRequest, prompt: Sequence[int], index: int) -> AnswerParser | None:
        """What tells an answer's parts apart; None where it has none."""
        template = self._model.template
        calls = bool(request.tools) and request.tool_choice != "none"
        marks = template.thought_marks
        if request.prompt is not None or not (calls or marks):
            return None
        in_thought = marks is not None and self._end_of(prompt).endswith(marks[0])
        names = frozenset(tool.name for tool in request.tools)
        return AnswerParser(index, template.dialect if calls else None, names, marks, in_thought)

    async def _encode(self, request: ChatRequest) -> Sequence[int]:
        """The prompt's ids. Another thread makes them where that may take long: a template runs in a process of its own,
        which is waited for."""
        self._bearable(request)
        if isinstance(request.prompt, tuple) or (request.prompt is not None and len(request.prompt) < LONG_PROMPT):
            return self._tokens(request)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._tokens, request)

    def _bearable(self, request: ChatRequest) -> None:
        if (at_least := _n_bytes(request) // self._longest_token) >= self._longest:
            # Tokenising tens of megabytes takes a minute, and the answer is known without.
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._longest} tokens. However, your prompt has at least "
                f"{at_least} tokens. Please shorten it.",
                param="messages" if request.prompt is None else "prompt",
            )

    def _tokens(self, request: ChatRequest, *, begun: bool = True, bare: bool = False) -> Sequence[int]:
        if request.prompt is None:
            return self._model.template.encode(request, self._model.tokenizer, begun=begun)
        if isinstance(request.prompt, tuple):
            return request.prompt
        # A plain prompt is the whole of what the model reads, control tokens included: whoever sends one writes the template.
        ids, bos = self._model.tokenizer.encode(request.prompt, specials=True), self._model.tokenizer.bos_id
        needs_bos = self._model.config.add_bos and not bare and bos is not None and ids[:1] != [bos]
        return [bos, *ids] if needs_bos and bos is not None else ids

    async def _answer(
        self, engine: Engine, request: ChatRequest, prompt: Sequence[int], grammar: Grammar | None
    ) -> AsyncGenerator[Event, None]:
        sampling = self._as_asked(request)
        if sampling.seed is None and sampling.temperature:
            sampling = replace(sampling, seed=secrets.randbits(63))  # drawn here, so that it can be written down
        most = max(0, self._longest - len(prompt))
        room = most if sampling.max_tokens is None else min(sampling.max_tokens, most)
        streams = _submit(engine, replace(request, sampling=sampling), prompt, grammar, self._thoughtful(request, prompt))
        paper = receipt(engine.identity, sampling, room)
        try:
            for index in range(len(streams) if request.echo else 0):
                yield TextDelta(self._echo(request, prompt), index)
            parsers = [self._parser(request, prompt, i) for i in range(len(streams))]
            async with aclosing(_events(streams, parsers, prompt, paper)) as events:
                async for event in events:
                    yield event
        finally:
            for stream in streams:
                await stream.aclose()

    def _as_asked(self, request: ChatRequest) -> SamplingParams:
        """What the client said of sampling, and the model's own wish where it said nothing."""
        unsaid = {name: value for name, value in self._sampling.items() if name not in request.body}
        most, asked = self._max_output, request.sampling.max_tokens
        return replace(request.sampling, max_tokens=min(asked or most, most) if most else asked, **unsaid)

    def _echo(self, request: ChatRequest, prompt: Sequence[int]) -> str:
        return request.prompt if isinstance(request.prompt, str) else self._model.tokenizer.decode(prompt)


def _submit(
    engine: Engine,
    request: ChatRequest,
    prompt: Sequence[int],
    grammar: Grammar | None,
    held: Callable[[Grammar], Grammar | AfterThought],
) -> list[GenerationStream]:
    """One stream for each choice, or none and an exception."""
    streams: list[GenerationStream] = []
    name = uuid.uuid4().hex
    try:
        for choice in range(request.sampling.n):
            own = held(grammar.fork()) if grammar else None
            wanted = GenerationRequest(f"{name}-{choice}", prompt, request.sampling, choice, request.tenant, own)
            streams.append(engine.submit(wanted))
    except BaseloadError:
        for stream in streams:
            engine.abort(stream.request_id)
        raise
    return streams


def _n_bytes(request: ChatRequest) -> int:
    """The texts of a request in UTF-8 bytes."""
    prompt = request.prompt if isinstance(request.prompt, str) else ""
    return len(prompt.encode("utf-8", "replace")) + sum(len(m.text.encode("utf-8", "replace")) for m in request.messages)


async def _events(
    streams: list[GenerationStream], parsers: Sequence[AnswerParser | None], prompt: Sequence[int], paper: Receipt
) -> AsyncGenerator[Event, None]:
    """The outputs of all choices as events, Usage with the first token and before the last Finish."""
    left, spoken, seconds, prompt_s, signals = len(streams), 0, 0.0, 0.0, None
    ids: list[list[int]] = [[] for _ in streams]

    def usage(thought: int = 0) -> Usage:
        tokens = (first.prompt_tokens, spoken, first.cached_tokens, thought)
        paid = {"device_seconds": round(seconds, 9), "input_seconds": round(prompt_s, 9)}
        whole = replace(paper, tokens=tuple(map(tuple, ids)), tokens_digest=tokens_digest(prompt, ids))
        return replace(Usage(*tokens), **paid, signals=signals, receipt=whole)

    first = TokenOutput()
    async with aclosing(_merged(streams)) as outputs:
        async for index, output in outputs:
            seconds += output.device_seconds or 0.0
            prompt_s += output.input_seconds or 0.0
            if output.failure is not None:
                if spoken:  # what was done until then has its price; before the first word another place may still take it
                    yield usage()
                yield output.failure
                return
            if not spoken:
                first = output
                yield Usage(first.prompt_tokens, 0, first.cached_tokens, receipt=paper)
            spoken += len(output.token_ids)
            ids[index] += output.token_ids
            finish, parser = output.finish, parsers[index]
            if parser is None:
                yield TextDelta(output.text, index, len(output.token_ids), output.logprobs)
            else:
                for delta in parser.feed(output.text, len(output.token_ids), output.logprobs, is_last=output.is_last):
                    yield delta
                finish = "tool_calls" if finish == "stop" and parser.has_called else finish
            if output.margins is not None and not index:
                signals = dict(zip(SIGNALS, output.margins, strict=True))
            if finish is not None:
                left -= 1
                if not left:
                    yield usage(sum(p.reasoning_tokens for p in parsers if p))
                yield Finish(finish, index, output.matched_stop)


async def _merged(streams: list[GenerationStream]) -> AsyncGenerator[Indexed, None]:
    """The outputs of all streams as they come."""
    if len(streams) == 1:
        async for output in streams[0]:
            yield 0, output
        return
    queue: asyncio.Queue[Indexed] = asyncio.Queue()

    async def pump(index: int, stream: GenerationStream) -> None:
        async for output in stream:
            queue.put_nowait((index, output))

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            index, output = await queue.get()
            left -= output.is_last
            yield index, output
    finally:
        for task in pumps:
            task.cancel()


def _failure(error: BaseloadError) -> Failure:
    return Failure(error.message, error.status, error.kind, error.code, error.retryable, error.retry_after)
