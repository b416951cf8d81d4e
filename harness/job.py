"""A job: a recurring piece of work with a definition of done, as data.

A job is one TOML file. Asking the model `job:<name>` runs the client's message as that job's input: the job's context
comes first, its checks decide whether an answer is accepted, and its route (usually `auto`) says who may do the work.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..wire.chat import ChatRequest, Message, ResponseFormat, Text
from ..wire.errors import BadRequest, ModelNotFound

PREFIX = "job:"


@dataclass(frozen=True, slots=True)
class Job:
    """One job. `schema` is the JSON schema of its answer, None for free text; `checks` are further ones."""

    name: str
    description: str = ""
    model: str = "auto"
    instructions: str = ""
    max_tokens: int = 512
    temperature: float = 0.0
    schema: Mapping[str, Any] | None = None
    checks: tuple[Mapping[str, Any], ...] = ()


def parse_job(text: str, name: str) -> Job:
    """A job from TOML text. Raises BadRequest naming an unknown key or a wrong type."""
    try:
        table = tomllib.loads(text)
        if isinstance(table.get("schema"), str):
            table["schema"] = json.loads(table["schema"])
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise BadRequest(f"job {name!r}: {error}") from error
    known = {f.name for f in fields(Job)} - {"name"}
    if unknown := set(table) - known:
        raise BadRequest(f"job {name!r}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")
    for key, kind in {"model": str, "instructions": str, "description": str, "max_tokens": int, "checks": list}.items():
        if key in table and not isinstance(table[key], kind):
            raise BadRequest(f"job {name!r}: {key} must be a {kind.__name__}")
    if table.get("model", "").startswith(PREFIX):
        raise BadRequest(f"job {name!r}: a job cannot run as another job")
    return Job(name=name, **{**table, "checks": tuple(table.get("checks", ()))})


def load_jobs(folders: Iterable[Path]) -> dict[str, Job]:
    """Every `*.toml` of the folders by its file name; a later folder's job replaces an earlier one's."""
    return {
        path.stem: parse_job(path.read_text("utf-8"), path.stem)
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.glob("*.toml"))
    }


def prepare(request: ChatRequest, jobs: Mapping[str, Job]) -> ChatRequest:
    """The request that a `job:<name>` request stands for; any other request comes back as it is.

    What the client set itself (max_tokens, response_format) wins over the job's values. Raises ModelNotFound.
    """
    if not request.model.startswith(PREFIX):
        return request
    job = jobs.get(request.model.removeprefix(PREFIX))
    if job is None:
        raise ModelNotFound(f"The job {request.model!r} does not exist.", param="model")
    if request.prompt is not None:
        raise BadRequest("A job needs messages; use /v1/chat/completions.", param="model")
    context = (Message("system", (Text(job.instructions),)),) if job.instructions else ()
    sampling = request.sampling
    return replace(
        request,
        model=job.model,
        messages=context + request.messages,
        sampling=replace(sampling, temperature=job.temperature, max_tokens=sampling.max_tokens or job.max_tokens),
        response_format=_format(job, request.response_format),
        extras=replace(request.extras, checks=job.checks + request.extras.checks),
        # The body no longer says what is asked: a supplier must be handed the neutral meaning.
        protocol="neutral",
        body={"temperature": job.temperature},  # said, so that no model's own wish holds
    )


def _format(job: Job, asked: ResponseFormat) -> ResponseFormat:
    if job.schema is None or asked.kind != "text":
        return asked
    return ResponseFormat("json_schema", name=job.name.replace("-", "_"), schema=job.schema, strict=True)
