"""Hermes, Qwen 2.5 and 3 and many others: one JSON object a call, between tags."""

from .dialect import Dialect, JsonCalls, json_call, json_text

OPEN, CLOSE = "<tool_call>", "</tool_call>"

HERMES = Dialect(
    name="hermes",
    signs=(OPEN,),
    opens=(OPEN,),
    reader=lambda names: JsonCalls(names, CLOSE, OPEN),
    grammar=lambda bodies: f'"{OPEN}\\n" {json_call(bodies)} "\\n{CLOSE}"',
    write=lambda name, arguments: f"{OPEN}\n{json_text(name, arguments)}\n{CLOSE}",
)
