"""A supplier that counts, to the token, what it has told its callers that they used.

What it does stands in the prompt: `flaky-N` fails the first time that it is asked, `broken` always, `cut` breaks off after
a word, `stall` says a word and waits until its caller has gone, `RUBRIC` (a judge's question) is graded. All else is
answered, as dearly as it was allowed to: every byte of the prompt a token, and the whole of `max_tokens`.
"""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
MODEL = "gpt-4o-mini"
AROUND = 48  # tokens around one message, as router/budget.py allows


@dataclass
class Told:
    """What one call has been told that it used."""

    prompt: int = 0
    completion: int = 0


@dataclass
class Counting:
    """`calls` grows with every call that came in whole; `pause_s` is how long each takes."""

    url: str = ""
    calls: list[Told] = field(default_factory=list)
    failed: int = 0  # tries that were answered with an error before a word
    pause_s: float = 0.0
    seen: set[str] = field(default_factory=set)

    def config(self, more: str = "") -> str:
        """Two suppliers, one of each way to tell usage: at the end, and at both ends."""
        table = f'price_provider = "openai"\nmodels = [{{id = "{MODEL}", context_length = 200000, tools = true}}]\n'
        return (
            f'[router]\nallowed_suppliers = ["acme", "claude"]\nladder = ["acme/{MODEL}"]\n{more}'
            f'[suppliers.acme]\nbase_url = "{self.url}/v1"\n{table}'
            f'[suppliers.claude]\nkind = "anthropic_messages"\nbase_url = "{self.url}"\n{table}'
        )

    @property
    def tokens(self) -> tuple[int, int]:
        """All that was told: prompts, completions."""
        return sum(call.prompt for call in self.calls), sum(call.completion for call in self.calls)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one call."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            size = int(head.partition("content-length:")[2].split("\r\n")[0])
            body = json.loads(await reader.readexactly(size))
            await self._answer(reader, writer, body, "/messages" in head.split(" ")[1])
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: Json, claude: bool) -> None:
        asked = json.dumps(body)
        flaky = re.search(r"flaky-\d+", asked)
        if (flaky and flaky[0] not in self.seen) or "broken" in asked:
            self.seen.add(flaky[0] if flaky else "")
            self.failed += 1
            status = b"503" if flaky else b"400"  # many of the former in a row would open the breaker
            writer.write(b"HTTP/1.1 " + status + b" X\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
            return await writer.drain()
        told = Told()
        self.calls.append(told)
        await asyncio.sleep(self.pause_s)
        prompt = AROUND + sum(len(_text(m["content"])) for m in body["messages"])
        most = body.get("max_completion_tokens") or body.get("max_tokens") or 1
        words = '{"score": 1, "why": "good"}' if "RUBRIC" in asked else "some words"
        writer.write(HEAD)
        if claude:
            told.prompt, told.completion = prompt, 1
            usage = {"input_tokens": prompt, "output_tokens": 1}
            await _say(writer, type="message_start", message={"id": "m", "role": "assistant", "content": [], "usage": usage})
            await _say(writer, type="content_block_start", index=0, content_block={"type": "text", "text": ""})
            await _say(writer, type="content_block_delta", index=0, delta={"type": "text_delta", "text": words})
        else:
            await _say(writer, choices=[{"index": 0, "delta": {"content": words}, "finish_reason": None}])
        if "stall" in asked:
            await reader.read()  # until the caller has gone
            return
        if "cut" in asked:
            return
        if claude:
            stop, used = {"stop_reason": "end_turn"}, {"output_tokens": most}
            await _say(writer, type="message_delta", delta=stop, usage=used)
            await _say(writer, type="message_stop")
        else:
            used = {"prompt_tokens": prompt, "completion_tokens": most}
            await _say(writer, choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
            await _say(writer, choices=[], usage=used)
            writer.write(b"data: [DONE]\n\n")
        told.prompt, told.completion = prompt, most
        await writer.drain()


async def _say(writer: asyncio.StreamWriter, **event: Any) -> None:
    writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    await writer.drain()


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@contextmanager
def counting() -> Iterator[Counting]:
    """One in a thread, for as long as the block runs."""
    loop, found, up = asyncio.new_event_loop(), Counting(), threading.Event()

    async def run() -> None:
        server = await asyncio.start_server(found.serve, "127.0.0.1", 0, backlog=1024, limit=1 << 22)
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        up.set()
        await server.serve_forever()

    thread = threading.Thread(target=lambda: loop.run_until_complete(_until_cancelled(run())), daemon=True)
    thread.start()
    assert up.wait(10)
    yield found
    loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
    thread.join(10)


async def _until_cancelled(work: Any) -> None:
    with suppress(asyncio.CancelledError):
        await work
