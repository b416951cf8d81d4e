"""What a prompt shows before anything has answered it: its terms, its shape and its class. Pure functions of text, no model.

Training and deciding read prompts by this one file, so that a predictor never meets a feature made otherwise than it learned.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

FEATURES_VERSION = 1  # of this file's and signals.py's meaning; a predictor fitted by another is refused
HEAD, TAIL = 6000, 2000  # characters of a long text that are read: a decision takes as long for a book as for a page
TASK_CLASSES = ("tools", "extraction", "code", "maths", "choice", "question", "other")

_WORD = re.compile(r"[^\W_]+|[^\w\s]")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_CHOICES = re.compile(r"^\s*\(?[A-J][.)]\s", re.MULTILINE)
_CODE = re.compile(
    r"```|\bdef \w+\(|\bclass \w+|\bimport \w+|#include|\bSELECT\b.*\bFROM\b|[;{]\s*$|=>|"
    r"\b(?:function|code|python|javascript|sql|regex)\b",
    re.MULTILINE,
)
_MATHS = re.compile(
    r"\\(?:frac|sum|int|sqrt|begin)|\$[^$\n]*[\\^_][^$\n]*\$|[=+*/^<>]\s*-?\d|\d\s*[=+*/^<>]|"
    r"\b(?:how many|how much|calculate|compute|solve|percent|equation|probability)\b",
    re.IGNORECASE,
)
_EXTRACT = re.compile(r"\b(?:extract|json|schema|fields?|parse|list all|table|classify|label)\b", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|never|except|false|least|without|n't)\b", re.IGNORECASE)
_COMPARISON = re.compile(r"\b(?:more|less|fewer|than|twice|half|times|each|every|per|if|remaining|left|total)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Task:
    """A request as the predictor sees it."""

    prompt: str
    group: str = ""  # a task class that the caller knows: a job's name, a subject
    tools: int = 0
    tool_parameters: int = 0  # of all tools together
    schema_chars: int = 0  # of the schema that the answer must keep, as JSON; 0: none


def clip(text: str) -> str:
    """The start and the end of a long text."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"


def task_class(task: Task) -> str:
    """One of TASK_CLASSES, by what the request carries and by its words."""
    text = clip(task.prompt)
    if task.tools:
        return "tools"
    if task.schema_chars:
        return "extraction"
    if len(_CHOICES.findall(text)) >= 2:
        return "choice"
    if len(_CODE.findall(text)) >= 2:
        return "code"
    if len(_MATHS.findall(text)) >= 2:
        return "maths"
    if _EXTRACT.search(text):
        return "extraction"
    return "question" if "?" in text else "other"


def terms(text: str) -> Counter[str]:
    """How often each word, pair of words, and sequence of 3 to 5 characters inside a word occurs; digits are one digit."""
    found = _WORD.findall(re.sub(r"\d", "0", clip(text).lower()))
    counted = Counter(found)
    counted.update(map(" ".join, pairwise(found)))
    for word, times in Counter(found).items():
        if len(word) > 2:
            padded = f" {word[:30]} "
            for n in (3, 4, 5):
                for start in range(len(padded) - n + 1):
                    counted[f"~{padded[start : start + n]}"] += times
    return counted


def prompt_shape(task: Task) -> dict[str, float]:
    """Numbers about a prompt, by name; all finite."""
    text = clip(task.prompt)
    words = text.split()
    n, w = max(len(text), 1), max(len(words), 1)
    numbers = _NUMBER.findall(text)
    shape = {
        "log_chars": math.log1p(len(task.prompt)),
        "log_words": math.log1p(len(words)),
        "word_length": sum(map(len, words)) / w,
        "longest_word": max(map(len, words), default=0),
        "long_words": sum(len(word) > 8 for word in words) / w,
        "distinct_words": len({word.lower() for word in words}) / w,
        "digits": sum(map(str.isdigit, text)) / n,
        "upper": sum(map(str.isupper, text)) / n,
        "foreign": sum(not c.isascii() for c in text) / n,
        "punctuation": sum(not c.isalnum() and not c.isspace() for c in text) / n,
        "numbers": math.log1p(len(numbers)),
        "distinct_numbers": math.log1p(len(set(numbers))),
        "biggest_number": max((math.log1p(min(float(x.replace(",", "")), 1e15)) for x in numbers), default=0.0),
        "decimals": sum("." in x for x in numbers),
        "percents": text.count("%"),
        "money": text.count("$"),
        "questions": text.count("?"),
        "sentences": math.log1p(len(re.findall(r"[.!?](?:\s|$)", text))),
        "lines": math.log1p(text.count("\n")),
        "choices": len(_CHOICES.findall(text)),
        "code": math.log1p(len(_CODE.findall(text))),
        "maths": math.log1p(len(_MATHS.findall(text))),
        "negation": len(_NEGATION.findall(text)),
        "comparison": len(_COMPARISON.findall(text)),
        "tools": math.log1p(task.tools),
        "tool_parameters": math.log1p(task.tool_parameters),
        "schema_chars": math.log1p(task.schema_chars),
    }
    found = task_class(task)
    return shape | {f"class_{name}": float(name == found) for name in TASK_CLASSES}
