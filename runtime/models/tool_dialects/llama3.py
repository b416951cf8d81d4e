"""Llama 3.1 and later: the answer is the call, {"name": ..., "parameters": ...}, maybe after <|python_tag|>."""

from .dialect import Dialect, JsonCalls, json_call

TAG = "<|python_tag|>"

LLAMA3 = Dialect(
    name="llama3",
    signs=(TAG, '"parameters": dictionary'),
    opens=(TAG, "{"),
    reader=lambda names: JsonCalls(names),
    grammar=lambda bodies: json_call(bodies, "parameters"),
    separator="",
)
