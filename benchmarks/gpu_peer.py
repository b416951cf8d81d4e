"""transformers' own continuous batching on the same shapes and requests: a process may have it, but not beside our engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .gpu_kernels import Bed
from .gpu_models import spec_of

Row = dict[str, Any]


def peer(name: str, smoke: bool) -> Iterator[Row]:
    """Output tokens a second over the wall of `generate_batch`, prompts and outputs as the engine's stage has them."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    from .gpu_engine import OUTPUT, PROMPT

    bed, spec = Bed(smoke), spec_of(name, smoke)
    sizes: Row = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "tie_word_embeddings": spec.tied,
        "max_position_embeddings": 4096,
    }
    torch.set_default_dtype(bed.dtype)
    with torch.device(bed.device):
        model = (Qwen3ForCausalLM(Qwen3Config(**sizes)) if spec.qk_norm else LlamaForCausalLM(LlamaConfig(**sizes))).eval()
    prompt, output = (8, 3) if smoke else (PROMPT, OUTPUT)
    settings = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # by itself it takes most of a GPU's memory; a CPU's would be hours in being cleared
    limits = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32) if smoke else None
    rng = np.random.default_rng(0)

    def generate(n: int) -> int:
        inputs = [rng.integers(0, spec.vocab, prompt).tolist() for _ in range(n)]
        options = {"continuous_batching_config": limits, "persistent_manager": True}
        found = model.generate_batch(inputs=inputs, generation_config=settings, **options)
        return sum(len(one.generated_tokens) for one in found.values())

    streams = (2, 1) if smoke else (256, 32, 1, 128, 8)
    generate(streams[0])  # sizes what it keeps by its first call, and captures its graphs there
    for n in streams:
        began = time.perf_counter()
        made = generate(n)
        seconds = time.perf_counter() - began
        if made != n * output:
            raise AssertionError(f"{made} tokens came, {n * output} were asked for")
        yield {"streams": n, "transformers output tokens/s": made / seconds}
