"""SmolLM2's: a list of JSON objects between tags. Also what a model is told to write whose template knows no tools."""

from .dialect import Dialect, JsonCalls, json_call, json_text

OPEN, CLOSE = "<tool_call>", "</tool_call>"

SMOLLM = Dialect(
    name="smollm",
    signs=(),
    opens=(OPEN,),
    reader=lambda names: JsonCalls(names, CLOSE, OPEN),
    grammar=lambda bodies: f'"{OPEN}[" {json_call(bodies)} "]{CLOSE}"',
    write=lambda name, arguments: f"{OPEN}[{json_text(name, arguments)}]{CLOSE}",
)
