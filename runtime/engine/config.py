"""How large the engine may grow. Frozen; the server's settings fill it in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine."""

    n_pages: int = 512
    page_size: int = 32  # tokens
    max_batch: int = 64  # sequences in one step
    token_budget: int = 512  # tokens in one step
    max_queue: int = 256  # sequences waiting; one more is refused with 429
    restored_pages: int = 16  # pages read back from the store in one step
    watchdog_s: float = 10.0  # a step that takes longer is stuck
    max_guess: int = 8  # tokens guessed ahead for one sequence; 0: none
    draws_on_device: bool = False  # the runner draws tokens where no more than their distribution is asked for
