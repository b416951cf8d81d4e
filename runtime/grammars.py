"""Schemas, patterns and choices to grammars, compiled outside of the event loop and the engine's thread, and kept."""

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ..wire.chat import ResponseFormat
from ..wire.errors import BadRequest
from .engine.grammar import LONGEST_WAY, Grammar, Vocabulary
from .models.tokenizer import Tokenizer

KEPT = 256  # compiled grammars
PATIENCE_S = 5.0
N_THREADS = 2  # a grammar that takes long holds up no other, and no template
# Small models lose themselves in white space, and a closed form is what a model writes by itself.
JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


JSON_GRAMMAR = re.compile(r'"json_schema":\s*[{t]')  # as llguidance writes one: a schema, or true


class GrammarCompiler:
    """The grammars of one model. `close` it."""

    def __init__(self, tokenizer: Tokenizer, width: int) -> None:
        """`width`: that of the model's logits."""
        self._tokenizer, self._width = tokenizer, width
        self._threads = ThreadPoolExecutor(N_THREADS, "grammar")
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._tables: tuple[LLTokenizer, Vocabulary] | None = None  # made when they are first wanted: it takes 0.1 s

    async def of_format(self, wanted: ResponseFormat) -> Grammar:
        """The grammar of `response_format`, for one answer. Raises BadRequest."""
        return await self.compiled(source(wanted), "response_format")

    async def compiled(self, grammar: str, param: str) -> Grammar:
        """A grammar in llguidance's form, for one answer. Raises BadRequest, blaming the field `param`."""
        found = self._kept.get(grammar)
        if found is None:
            work = asyncio.get_running_loop().run_in_executor(self._threads, self._compile, grammar, param)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    found = await work
            except TimeoutError as error:
                raise BadRequest("The grammar takes too long to compile; simplify it.", param=param) from error
            self._kept[grammar] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammar)
        return found.fork()

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: str, param: str) -> Grammar:
        tokenizer, vocabulary = self._tables = self._tables or self._read()
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise BadRequest(f"'{param}' cannot be used: {_line(matcher.get_error())}", param=param, code="unsupported_grammar")
        made = Grammar(matcher, vocabulary)
        shortest = made.way(LONGEST_WAY)
        reserve = 0 if shortest is None else 2 * len(shortest) + 32
        return Grammar(matcher, vocabulary, reserve, is_json=JSON_GRAMMAR.search(grammar) is not None)

    def _read(self) -> tuple[LLTokenizer, Vocabulary]:
        known = self._tokenizer
        ids = range(known.vocab_size)
        spelled = [known.token_bytes(id) for id in ids]
        ends = [id for id in known.eos_ids if id < self._width]
        words = _Words(known, ends[0] if ends else 0, [word or b"\xff<%d>" % id for id, word in enumerate(spelled)])
        tokenizer = LLTokenizer(TokenizerWrapper(words), n_vocab=self._width, eos_token=ends)
        return tokenizer, Vocabulary(spelled, self._width, ends)


class _Words:
    """The vocabulary as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer, end_id: int, tokens: list[bytes]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id, self.tokens = end_id, tokenizer.bos_id, tokens
        self.special_token_ids = [id for id in range(len(tokens)) if tokens[id].startswith(b"\xff<")]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"), specials=False)


def source(wanted: ResponseFormat) -> str:
    """A format as llguidance's grammar. Raises BadRequest."""
    match wanted.kind:
        case "json_object":
            return json_grammar({"type": "object"})
        case "json_schema":
            return json_grammar(wanted.schema or {})
        case "regex":
            return LLMatcher.grammar_from_regex(wanted.pattern)
        case "choice":
            return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in wanted.choices))
        case "grammar":
            return LLMatcher.grammar_from_lark(wanted.pattern)
        case _:
            raise BadRequest("Plain text has no grammar.", param="response_format")


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of a JSON schema's values. What `schema` itself says of style is not heard. Raises BadRequest."""
    try:
        return LLMatcher.grammar_from_json_schema(dict(schema), overrides=JSON_STYLE)
    except ValueError as error:
        raise BadRequest("'response_format' holds a schema that cannot be read.", param="response_format") from error


def _line(error: str) -> str:
    """llguidance's reason in one short line, without where in its own sources it arose."""
    first = re.sub(r"\s+", " ", error.strip().split("\n")[0])
    return first[:300] + ("" if first.endswith(".") else ".")
