"""`baseload ps`: what a running server serves, and how busy it is."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .common import DEFAULT_URL, fail_cleanly, print_json, print_table

# what we call it -> the metric; counters carry prometheus' `_total`
SHOWN = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_cache_used": "vllm:kv_cache_usage_perc",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generated_tokens": "vllm:generation_tokens_total",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
}


@fail_cleanly
def ps(
    url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a running server serves and how busy it is."""
    from . import remote

    pages = remote.pages(url, ("/health", "/v1/models", "/metrics"))
    health = _json(pages["/health"])
    models = _json(pages["/v1/models"]).get("data", [])
    numbers = digest(pages["/metrics"])
    if as_json:
        print_json({"url": url, "health": health, "models": models, "numbers": numbers})
        return
    print(f"{url}: {health.get('status', 'unknown')}" + (f", {health['reason']}" if "reason" in health else ""))
    rows = [(m["id"], str(m.get("max_model_len") or "-"), str(m.get("owned_by") or "-")) for m in models]
    print_table(("MODEL", "CONTEXT>", "OWNER"), rows)
    print_table(("NUMBER", "VALUE>"), [(name.replace("_", " "), f"{value:,.10g}") for name, value in numbers.items()])


def digest(page: str) -> dict[str, float]:
    """The numbers worth a glance, summed over their labels, from a page in Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except ValueError:
        return {}
    names = {sample.name for sample in samples}
    return {
        ours: sum(sample.value for sample in samples if sample.name == theirs)
        for ours, theirs in SHOWN.items()
        if theirs in names
    }


def _json(page: str) -> dict[str, Any]:
    try:
        found = json.loads(page)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
