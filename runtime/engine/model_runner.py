"""The model as the engine sees it: one ragged step in; best tokens and logits out, as numpy. Knows no tensor library."""

from typing import Protocol

from ...kernels.spec import DecoderSpec, StepBatch, StepOutput

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class ModelRunner(Protocol):
    """Runs steps against a paged KV pool that it owns. One caller at a time; which pages are whose is the caller's affair."""

    @property
    def vocab(self) -> int:
        """Width of the logits."""
        ...

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens."""
        ...

    @property
    def page_bytes(self) -> int:
        """Memory of one page over all layers."""
        ...

    def run(self, batch: StepBatch) -> StepOutput:
        """Write the batch's keys and values and return what they say for each of `batch.logit_rows`; rows of logits that
        `batch.full_logits` does not ask for may hold anything.

        A broken number (NaN, infinity) is returned as it is and said to be so in `finite`; one row's broken numbers reach
        no other row.
        """
        ...


class DescribedRunner(ModelRunner, Protocol):
    """A runner that can say what it runs on, and be done with."""

    @property
    def layout(self) -> str:
        """All but the weights that its numbers depend on."""
        ...

    def describe(self) -> str:
        """One line for the start-up log."""
        ...

    def close(self) -> None:
        """Let the weights and the pool go; nothing may run."""
        ...


def page_bytes(spec: DecoderSpec, page_size: int, dtype: str = "float32") -> int:
    """Memory of one page of `page_size` tokens over all layers on torch, for choosing `n_pages` before a runner exists."""
    return 2 * spec.n_layers * page_size * spec.n_kv_heads * spec.head_dim * ITEM_BYTES[dtype]
