"""The same question in every protocol that is served, and what each answer says that it used."""

import json
from dataclasses import dataclass
from typing import Any

import aiohttp

Json = dict[str, Any]


@dataclass
class Heard:
    """What a client has heard: `used` (prompt, completion) where it was told."""

    status: int = 0
    id: str = ""
    used: tuple[int, int] | None = None
    error: Json | None = None
    headers: Any = None


def body_of(surface: str, model: str, text: str, most: int, stream: bool, **more: Any) -> tuple[str, Json]:
    """(path, body)"""
    turns: Json = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    match surface:
        case "chat":
            options = {"stream_options": {"include_usage": True}} if stream else {}
            return "/v1/chat/completions", {**turns, "max_tokens": most, **options, **more}
        case "messages":
            return "/v1/messages", {**turns, "max_tokens": most, **more}
        case "responses":
            return "/v1/responses", {"model": model, "input": text, "stream": stream, "max_output_tokens": most, **more}
        case "google":
            method = "streamGenerateContent" if stream else "generateContent"
            contents = [{"role": "user", "parts": [{"text": text}]}]
            return f"/v1beta/models/{model}:{method}", {
                "contents": contents,
                "generationConfig": {"maxOutputTokens": most},
                **more,
            }
        case _:
            return "/api/chat", {**turns, "options": {"num_predict": most}, **more}


SURFACES = ("chat", "messages", "responses", "google", "ollama")


async def ask(
    session: aiohttp.ClientSession, url: str, surface: str, model: str, text: str, most: int = 20, *,
    stream: bool = False, leave: bool = False, key: str = "", **more: Any,
) -> Heard:  # fmt: skip
    """Ask; `leave`: go away after the first word of the answer."""
    path, body = body_of(surface, model, text, most, stream or leave, **more)
    heard = Heard()
    try:
        async with session.post(url + path, json=body, headers={"x-api-key": key} if key else {}) as answer:
            heard.status, heard.headers = answer.status, answer.headers
            heard.id = answer.headers.get("x-baseload-request-id", "")
            if leave and answer.status == 200:
                while b"words" not in await answer.content.readline():
                    if answer.content.at_eof():
                        break
                answer.close()
                return heard
            raw = await answer.read()
    except aiohttp.ClientError:
        return heard
    if answer.status != 200:
        heard.error = json.loads(raw)
        return heard
    for one in _objects(raw):
        heard.used = _used(one) or heard.used
    return heard


def _objects(raw: bytes) -> list[Json]:
    lines = [line.removeprefix("data: ") for line in raw.decode().splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def _used(one: Json) -> tuple[int, int] | None:
    if "prompt_eval_count" in one:
        return one["prompt_eval_count"], one["eval_count"]
    if told := one.get("usageMetadata"):
        return told["promptTokenCount"], told.get("candidatesTokenCount", 0) + told.get("thoughtsTokenCount", 0)
    told = one.get("usage") or (one.get("response") or {}).get("usage") or {}
    for prompt, completion in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
        if prompt in told and completion in told:
            return told[prompt] + told.get("cache_read_input_tokens", 0), told[completion]
    return None
