"""`baseload bench quality`: what the native step's roundings cost, in perplexity, beside the same file in unrounded float32.

The text is prose out of Python's own manual (`pydoc_data.topics`), cut into sequences of 512 tokens. Each is computed by the
torch decoder with the file's weights dequantised to float32, and by the native step with every instruction set; all tokens but
a sequence's first are predicted. The difference is the native step's alone: its activations of 8 and
16 bits (with tiles its weights), and its bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import math
import pydoc_data.topics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ..kernels.cpu import library as native
from ..kernels.cpu.step import NativeStep, layout_of
from ..kernels.dispatch import n_threads
from ..kernels.spec import StepBatch
from ..runtime.models.model_file import LoadedModel, load_model
from ..runtime.models.native_weights import native_weights
from .command import run_command
from .machine import describe, versions

LENGTH, PAGE = 512, 16  # tokens of a sequence, and of a page
CHARACTERS = 120_000
SHA256 = "1dd08e2ecd6f561eb429a94abda1c10f3cddd01b8f0d8c8d1b2dea85ce15dea4"  # of it in Python 3.11.7; another's differs
Logits = NDArray[np.float32]  # [tokens, vocab]
Run = Callable[[StepBatch], Logits]


@dataclass(slots=True)
class Score:
    """How one way of computing predicts the text, and how near it is to float32."""

    name: str
    tokens: int = 0
    surprise: float = 0.0  # nats, summed
    divergence: float = 0.0  # KL(float32 || this), nats, summed
    agreed: int = 0  # times that both prefer the same token

    def add(self, targets: NDArray[np.int32], exact: Logits, found: Logits) -> None:
        """Count one sequence: logits [n, vocab] of both that predict `targets` [n]."""
        p, q = log_softmax(exact), log_softmax(found)
        self.tokens += len(targets)
        self.surprise -= float(q[np.arange(len(targets)), targets].sum(dtype=np.float64))
        self.divergence += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
        self.agreed += int((exact.argmax(1) == found.argmax(1)).sum())

    @property
    def perplexity(self) -> float:
        return math.exp(self.surprise / self.tokens)


def log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def text() -> str:
    """The first characters of the manual's topics, in the order of their names."""
    whole = "\n\n".join(body for _, body in sorted(pydoc_data.topics.topics.items()))
    return whole[:CHARACTERS]


def is_known(found: str) -> bool:
    """Whether this is the text of the figures that we publish."""
    return hashlib.sha256(found.encode()).hexdigest() == SHA256


def sequences(model: LoadedModel, n_tokens: int) -> Iterator[NDArray[np.int32]]:
    """The text in tokens, LENGTH at a time; fewer than `n_tokens` where it ends."""
    ids = np.array(model.tokenizer.encode(text(), specials=False)[:n_tokens], np.int32)
    for at in range(0, len(ids) - 1, LENGTH):
        yield ids[at : at + LENGTH]


def whole(tokens: NDArray[np.int32]) -> StepBatch:
    """One sequence by itself on the first pages; all of its logits are wanted."""
    n = len(tokens)
    every = np.arange(n, dtype=np.int32)
    return StepBatch(
        tokens=np.ascontiguousarray(tokens),
        positions=every,
        slots=every.astype(np.int64),
        row_starts=np.array([0, n], np.int32),
        context_lens=np.array([n], np.int32),
        page_tables=np.arange(-(-n // PAGE), dtype=np.int32)[None],
        logit_rows=every,
        full_logits=np.ones(n, np.bool_),
        page_size=PAGE,
    )


def measure(model: LoadedModel, isas: Sequence[str], pool: native.Pool, n_tokens: int) -> list[Score]:
    """float32 first, then each instruction set. Imports torch."""
    exact, spec, n_pages = float32(model), model.config.decoder, LENGTH // PAGE
    weights = {layout: native_weights(model.weights, spec, layout) for layout in {layout_of(isa) for isa in isas}}
    steps = {isa: NativeStep(spec, weights[layout_of(isa)], n_pages, PAGE, LENGTH, pool, isa) for isa in isas}
    scores = [Score("float32"), *(Score(isa) for isa in isas)]
    try:
        for tokens in sequences(model, n_tokens):
            batch, targets = whole(tokens), tokens[1:]
            right = exact(batch)[:-1]
            for score in scores:
                found = right if score.name == "float32" else steps[score.name].run(batch).logits[:-1]
                score.add(targets, right, found)
    finally:
        for step in steps.values():
            step.close()
    return scores


def float32(model: LoadedModel) -> Run:
    """The torch decoder on the dequantised file."""
    import torch  # dev and gpu installs have it

    from ..kernels.paged_attention import KvPool
    from ..runtime.models.decoder import Decoder

    torch.set_num_threads(n_threads())
    decoder = Decoder(model.config.decoder, model.weights)
    kv = KvPool(decoder.spec, LENGTH // PAGE, PAGE, torch.device("cpu"), torch.float32)
    return lambda batch: decoder.forward(batch, kv).numpy()


def rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Perplexity, its ratio to float32's, mean divergence and agreement of each."""
    exact = scores[0]
    return [
        {
            "name": score.name,
            "tokens": score.tokens,
            "perplexity": score.perplexity,
            "ratio": score.perplexity / exact.perplexity,
            "mean_kl_nats": score.divergence / score.tokens,
            "agreement": score.agreed / score.tokens,
        }
        for score in scores
    ]


def show(found: Sequence[dict[str, Any]], console: Console) -> None:
    """The table."""
    table = Table("", "perplexity", "ratio", "mean KL, nats", "same best token")
    for row in found:
        figures = f"{row['perplexity']:.4f}", f"{row['ratio']:.5f}", f"{row['mean_kl_nats']:.6f}", f"{row['agreement']:.2%}"
        table.add_row(row["name"], *figures)
    console.print(table)


def command(
    model: Annotated[Path, typer.Argument(help="A model file or folder.")],
    tokens: Annotated[int, typer.Option(min=2, help="Of the text.")] = 20480,
    isa: Annotated[list[str] | None, typer.Option(help="Instruction set, again for more; else all there are.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: one for each core.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """What the native step's roundings cost in perplexity, beside float32."""
    loaded, pool = load_model(model), native.Pool(n_threads(threads))
    found = rows(measure(loaded, isa or native.instruction_sets(), pool, tokens))
    console = Console(highlight=False, width=120)
    known = "the published text" if is_known(text()) else "another text than the published one"
    console.print(f"{loaded.config.name}, {found[0]['tokens']} tokens of {known}")
    show(found, console)
    if json_file:
        digest = hashlib.sha256(text().encode()).hexdigest()
        about = {"model": loaded.config.name, "digest": loaded.digest, "text_sha256": digest, "rows": found}
        json_file.write_text(json.dumps({"machine": describe(), "versions": versions(), **about}, indent=1), "utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(command, "quality", words)


if __name__ == "__main__":
    sys.exit(main())
