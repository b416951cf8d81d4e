"""A hostile template costs one request, whatever it does: it runs in a process of its own."""

import os
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from baseload.runtime.models import gguf_vocab, template_process
from baseload.runtime.models.chat_template import ChatTemplate
from baseload.runtime.models.template_process import TemplateFailed, TemplateProcess
from baseload.runtime.models.tokenizer import Tokenizer, tokenizer_from_gguf
from baseload.wire.chat import ChatRequest, Message, Text
from baseload.wire.errors import BadRequest, ModelFileError

HELLO = [{"role": "user", "content": "Hello"}]
HI = ChatRequest("local", (Message("user", (Text("hi"),)),))


@cache
def tokenizer() -> Tokenizer:
    """A vocabulary of single bytes."""
    tokens = list(gguf_vocab.alphabet().values())
    return tokenizer_from_gguf({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens})


MESSAGES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
DOUBLE = "{% set ns = namespace(v=START) %}{% for i in range(60) %}{% set ns.v = STEP %}{% endfor %}"


def doubling(start: str, step: str, end: str = "{{ ns.v }}") -> str:
    """A template that applies `step` to `ns.v` sixty times."""
    return DOUBLE.replace("START", start).replace("STEP", step) + end


REFUSED = {
    "loop": "{% for i in range(10**12) %}{% endfor %}x",
    "nested_loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + MESSAGES,
    "string_bomb": "{{ 'x' * 10**10 }}",
    "string_doubling": doubling("'x'", "ns.v ~ ns.v"),
    "replace_doubling": doubling("'xx'", "ns.v | replace('x', 'xx')"),
    "list_doubling": doubling("[0]", "ns.v + ns.v", MESSAGES),
    "list_of_lists": doubling("[0]", "[ns.v, ns.v]"),
    "json_of_lists": doubling("[0]", "[ns.v, ns.v]", "{{ ns.v | tojson }}"),
    "join": "{% set s = 'x' * 10000 %}{{ range(100000) | join(s) }}",
    "output": "{% set s = 'x' * 100000 %}{% for i in range(100000) %}{{ s }}{% endfor %}",
    "large_output": "{{ 'x' * 9000000 }}",
    "list_multiplied": "{{ ([[0] * 10000] * 10000) | tojson }}",
    "indent": "{{ 'a\nb' | indent(10**9) }}",
    "json_indent": "{{ [1] | tojson(indent=10**9) }}",
    "format": "{{ '{:1000000000d}'.format(1) }}",
    "percent_format": "{{ '%1000000000d' % 1 }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "pow": "{{ 9**(9**(9**9)) }}",
    "macro_recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "loop_recursion": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "self_reference": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "deep_value": doubling("0", "[ns.v]", "{{ ns.v | tojson }}").replace("60", "20000"),
    "escape_class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "escape_globals": "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}",
    "escape_lipsum": "{{ lipsum.__globals__['os'].popen('touch MARKER').read() }}",
    "escape_function": "{{ raise_exception.__globals__['os'].popen('touch MARKER').read() }}",
    "escape_attr": "{{ ('{0.__class__.__init__.__globals__}' | attr('format'))(messages) }}",
    "escape_format_map": "{% set f = '{a.__class__}'.format_map %}{{ f({'a': messages}) }}",
    "import": "{% import 'os' as o %}",
    "include": "{% include '/etc/passwd' %}",
    "syntax": "{% for m in messages %}",
    "undefined": "{{ nothing.here.at.all }}",
    "raises": "{{ raise_exception('no') }}",
    "raises_nothing": "{{ raise_exception() }}",
    "nothing": "",
    "huge": "{# " + "x" * 4_000_000 + " #}" + MESSAGES,
    "deep_blocks": "{% if 1 %}" * 3000 + "x" + "{% endif %}" * 3000,
    "deep_parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "deep_not": "{{ " + "not " * 100_000 + "1 }}",
    "deep_filters": "{{ 1" + "|string" * 100_000 + " }}",
    "number": 7,
    "list": ["{{ 1 }}"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_template_costs_one_request(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "pwned"
    source = REFUSED[name]
    template = ChatTemplate(source.replace("MARKER", str(marker)) if isinstance(source, str) else source)
    for _ in range(2):  # and the next request gets the same answer
        with pytest.raises(BadRequest) as refusal:
            template.encode(HI, tokenizer())
        message = refusal.value.message
        assert "\n" not in message and len(message) < 400 and str(Path(__file__).parent) not in message
    template.close()
    assert not marker.exists()


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if messages.append({'role': 'system', 'content': 'evil'}) %}{% endif %}{% endfor %}x",
        "{{ messages.clear() }}x",
        "{{ messages[0].update({'content': 'evil'}) }}x",
        "{{ messages[0].pop('content') }}x",
    ],
)
def test_a_template_cannot_change_the_request(source: str) -> None:
    template, messages = ChatTemplate(source), [{"role": "user", "content": "hi"}]
    try:
        template.render(messages)
    except BadRequest:
        pass
    finally:
        template.close()
    assert messages == [{"role": "user", "content": "hi"}]


def test_memory_of_a_hostile_template_is_bounded() -> None:
    """Whatever it does, the child's memory ends at the limit and ours does not grow."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest child of any test before
    for name in ("format", "list_doubling", "list_multiplied", "string_doubling"):
        template = ChatTemplate(REFUSED[name])
        with pytest.raises(BadRequest):
            template.render(HELLO)
        template.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(others, 500_000)


def test_who_is_to_blame() -> None:
    blamed = {"raises": "does not take the conversation: no", "syntax": "is broken", "nested_loops": "was stopped"}
    for name, words in blamed.items():
        template = ChatTemplate(REFUSED[name])
        with pytest.raises(BadRequest, match=words):
            template.render(HELLO)
        template.close()


@pytest.mark.parametrize("name", ["syntax", "undefined", "list_doubling", "deep_not", "number", "huge"])
def test_check_reports_a_broken_template(name: str) -> None:
    template = ChatTemplate(REFUSED[name])
    with pytest.raises(ModelFileError, match="chat template") as refusal:
        template.check()
    template.close()
    assert "\n" not in refusal.value.message


# ------------------------------------------------------------------------------------------------ the process


def test_a_killed_process_is_replaced() -> None:
    deadly = "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}"
    process = TemplateProcess({"t": "{% if x == 'die' %}" + deadly + "{% endif %}{{ x }}"})
    for _ in range(3):
        with pytest.raises(TemplateFailed) as failure:
            process.render("t", {"x": "die"})
        assert failure.value.kind == "limit"
        assert process.render("t", {"x": "live"}) == "live"
    process.close()


def test_a_stopped_process_does_not_hold_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "WALL_S", 0.2)
    process = TemplateProcess({})
    monkeypatch.setattr(process, "_start", lambda: _popen("import time; time.sleep(60)"))
    with pytest.raises(TemplateFailed, match="time"):
        process.render("t", {})
    process.close()


def _popen(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


def test_processes_end_with_their_owner() -> None:
    program = """
from baseload.runtime.models.chat_template import ChatTemplate
kept, dropped = ChatTemplate("a"), ChatTemplate("b")
kept.render([]), dropped.render([])
print(kept._process._child.pid, dropped._process._child.pid)
del dropped
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for pid in map(int, done.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_closing_twice_and_using_again() -> None:
    template = ChatTemplate(MESSAGES)
    first = template.render(HELLO)
    template.close()
    template.close()
    assert template.render(HELLO) == first
    template.close()


def test_threads_share_a_process() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    with ThreadPoolExecutor(8) as pool:
        texts = [f"text {i} " * 500 for i in range(100)]
        assert list(pool.map(lambda t: template.render([{"role": "user", "content": t}]), texts)) == texts
    template.close()
    assert threading.active_count() < 20
