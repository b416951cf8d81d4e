"""Continuous batching over one flat ragged batch.

numpy tables and plain ints; only torch_runner knows a tensor library. `Engine` is a thread with an asyncio face over an
`EngineCore`, whose `step` schedules, runs, samples and emits.
"""

from .config import EngineConfig
from .engine import Engine, EngineStats, GenerationStream
from .request import GenerationRequest, TokenOutput

__all__ = ["Engine", "EngineConfig", "EngineStats", "GenerationRequest", "GenerationStream", "TokenOutput"]
