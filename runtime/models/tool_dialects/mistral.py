"""Mistral's: a mark, and then a list of JSON objects to the answer's end."""

from .dialect import Dialect, JsonCalls, json_call

OPEN = "[TOOL_CALLS]"

MISTRAL = Dialect(
    name="mistral",
    signs=(OPEN,),
    opens=(OPEN,),
    reader=lambda names: JsonCalls(names, "", OPEN),
    grammar=lambda bodies: f'"{OPEN}[" {json_call(bodies)} "]"',
    separator="",
)
