"""How models write tool calls: one file for each dialect. Which one a model speaks is read from its chat template."""

from .dialect import Dialect, Piece
from .gemma import GEMMA
from .hermes import HERMES
from .llama3 import LLAMA3
from .mistral import MISTRAL
from .smollm import SMOLLM

DIALECTS = (GEMMA, MISTRAL, HERMES, LLAMA3, SMOLLM)  # the first whose mark stands in the template; the last fits all

__all__ = ["DIALECTS", "Dialect", "Piece", "dialect_of"]


def dialect_of(template: str) -> Dialect:
    """The dialect of a chat template; for one without tools, the plainest, whose rules the prompt then explains."""
    return next((d for d in DIALECTS if d.is_spoken_by(template)), SMOLLM)
