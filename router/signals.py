"""What a local answer shows about itself, once it is there: its shape, its arithmetic checked, its place beside the question.

All of it is read from the text (no model, a millisecond): whether the equations that it writes hold, whether it used the
question's numbers, where its own numbers come from, how it ends. Numbers that the runtime knows (token margin, entropy,
agreement of samples) come in beside these, under names of the caller's choice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from .features import clip

_NUMBER = re.compile(r"(?<![\w.])-?\$?(\d[\d,]*(?:\.\d+)?|\.\d+)")
_CHAIN = re.compile(r"[-+*/x×÷().$%,\d \t]+(?:=[-+*/x×÷().$%,\d \t]+)+")
_UNIT = re.compile(r"(?<=[\d)])[ \t]+(?:[a-z/]+[ \t]+){1,3}(?=[-+*/=×÷])")  # the apples of "3 apples * 2 = 6"
_ANNOTATED = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_DOUBT = re.compile(
    r"\b(?:however|assum\w*|unclear|not (?:possible|given|sure|enough|specified)|cannot|can't|sorry|unfortunately|actually|"
    r"wait|mistake|maybe|perhaps|might)\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(r"\b(?:approximately|about|roughly|round\w*|but|let's|therefore|so)\b", re.IGNORECASE)
_ALGEBRA = re.compile(r"\b\d*[b-zB-HJ-Z]\s*[=+*/]|\d[xy]\b|\b(?:let|equation|variable)\b")
_WORDS_AS_NUMBERS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "dozen": 12, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "hundred": 100, "half": 0.5, "twice": 2,
    "double": 2, "triple": 3, "third": 3, "quarter": 4, "week": 7, "year": 12, "hour": 60, "percent": 100,
}  # fmt: skip


FINAL = (
    "final_whole", "final_size", "final_in_question", "final_is_result", "final_first_seen", "final_ratio", "final_signed",
)  # fmt: skip


def numbers(text: str) -> list[float]:
    """Numbers in a text, in order, without signs."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text) if len(found) <= 18]


def value(expression: str) -> float | None:
    """What an expression of + - * / ( ) and % is; None when it is not one. Never runs code."""
    text = re.sub(r"[\s$,]", "", expression).replace("x", "*").replace("×", "*").replace("÷", "/")
    tokens = re.findall(r"\d+\.?\d*|\.\d+|[-+*/()%]", text)
    if not tokens or len(tokens) > 60 or "".join(tokens) != text:
        return None
    try:
        found, rest = _sum(tokens, 0)
    except (IndexError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return found if rest == len(tokens) and math.isfinite(found) else None


def _sum(tokens: Sequence[str], at: int) -> tuple[float, int]:
    total, at = _product(tokens, at)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _product(tokens, at + 1)
        total, at = (total + right if tokens[at] == "+" else total - right), after
    return total, at


def _product(tokens: Sequence[str], at: int) -> tuple[float, int]:
    total, at = _unit(tokens, at)
    while at < len(tokens) and tokens[at] in "*/":
        right, after = _unit(tokens, at + 1)
        total, at = (total * right if tokens[at] == "*" else total / right), after
    return total, at


def _unit(tokens: Sequence[str], at: int) -> tuple[float, int]:
    if tokens[at] == "-":
        found, at = _unit(tokens, at + 1)
        return -found, at
    if tokens[at] == "(":
        found, at = _sum(tokens, at + 1)
        if tokens[at] != ")":
            raise ValueError("unclosed")
        at += 1
    else:
        found, at = float(tokens[at]), at + 1
    if at < len(tokens) and tokens[at] == "%":
        found, at = found / 100, at + 1
    return found, at


def equations(text: str) -> list[tuple[str, float]]:
    """What a text says is equal: an expression and the value that it claims for it."""
    found = [(left, claimed) for left, right in _ANNOTATED.findall(text) if (claimed := value(right)) is not None]
    for chain in _CHAIN.findall(_UNIT.sub(" ", _ANNOTATED.sub("", text))):
        sides = [side.strip(" \n\t.,$x") for side in chain.split("=")]
        for left, right in pairwise(sides):
            claimed = value(right)
            if claimed is not None and re.search(r"\d\s*[-+*/x×÷]", left):
                found.append((left, claimed))
    return found


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 + 0.006 * max(abs(a), abs(b))


def _among(x: float, many: Sequence[float]) -> bool:
    return any(_near(x, y) for y in many)


def answer_shape(prompt: str, response: str) -> dict[str, float]:
    """Numbers about an answer, by name; all finite. An empty answer has a shape too."""
    question, text = clip(prompt), clip(response).strip()
    words, lines = text.split(), [line.strip() for line in text.splitlines() if line.strip()]
    shape = {
        "empty": float(not text),
        "log_chars": math.log1p(len(response)),
        "log_words": math.log1p(len(words)),
        "lines": math.log1p(len(lines)),
        "length_ratio": math.log1p(len(response)) - math.log1p(len(prompt)),
        "line_length": sum(map(len, lines)) / max(len(lines), 1) / 100,
        "hedges": len(_HEDGE.findall(text)),
        "doubts": math.log1p(len(_DOUBT.findall(text))),
        "repeated_lines": 1 - len(set(lines)) / max(len(lines), 1),
        "repeated_words": 1 - len({w.lower() for w in words}) / max(len(words), 1),
        "code": float("```" in text),
        "asks": text.count("?"),
        "ends": float(text[-1:] in ".!?)]}`\"'" or bool(re.search(r"####\s*\S+$", text))),
        "algebra": math.log1p(len(_ALGEBRA.findall(text))),
        "letters": math.log1p(len(re.findall(r"\b[A-Z]\b", text))),
    }
    return shape | _arithmetic(question, text, lines)


def _arithmetic(question: str, text: str, lines: Sequence[str]) -> dict[str, float]:
    plain, lower = numbers(question), question.lower()
    asked = plain + [float(n) for word, n in _WORDS_AS_NUMBERS.items() if word in lower]
    said = numbers(_ANNOTATED.sub(lambda m: f" {m[1]} = ", text))
    known, wrong, unread, unknown, operands, results = list(asked), 0, 0, 0, 0, []
    wrong_by = 0.0
    written = equations(text)
    for left, claimed in written:
        found = value(left)
        if found is None:
            unread += 1
        elif not (_near(found, claimed) or _near(found * 100, claimed) or _near(found, claimed * 100)):
            wrong += 1
            wrong_by = max(wrong_by, min(abs(math.log((abs(found) + 1e-3) / (abs(claimed) + 1e-3))), 5.0))
        inside = numbers(left)
        operands += len(inside)
        unknown += sum(not _among(x, known) and x not in (1, 2, 100) for x in inside)
        results.append(claimed)
        known.append(claimed)
    n = len(results)
    final_line = text.rsplit("####", 1)[1] if "####" in text else (lines[-1] if lines else "")
    last = numbers(final_line)[-1:] or said[-1:]
    final = last[0] if last else None
    used = sum(_among(x, said) for x in plain)
    shape = {
        "numbers": math.log1p(len(said)),
        "equations": math.log1p(n),
        "equations_per_number": n / (len(plain) + 1),
        "wrong": wrong,
        "wrong_part": wrong / max(n, 1),
        "wrong_by": wrong_by,
        "unread": unread / max(n, 1),
        "unknown_operands": unknown / max(operands, 1),
        "unknown_count": unknown,
        "unused": len(plain) - used,
        "used_part": used / max(len(plain), 1),
        "marked_final": float("####" in text),
        "cut": float(text.count("<<") > text.count(">>") or not re.search(r"[.!?)\d%]\W*$", text)),
        "final": float(final is not None),
        "negative": float(any(x < 0 for x in results)),
        "fractional_steps": sum(abs(x - round(x)) > 1e-6 for x in results) / max(n, 1),
        "after_final": math.log1p(len(text.rsplit("####", 1)[1]) if "####" in text else 0),
        **{f"op{sign}": math.log1p(sum(left.count(sign) for left, _ in written)) for sign in "+*-/"},
    }
    if final is None:
        return shape | dict.fromkeys(FINAL, 0.0)
    biggest = max(plain, default=0.0)
    return shape | {
        "final_whole": float(abs(final - round(final)) < 1e-9),
        "final_size": math.log1p(min(abs(final), 1e15)),
        "final_in_question": float(_among(final, plain)),
        "final_is_result": float(bool(results) and _near(results[-1], final)),
        "final_first_seen": float(_among(final, results)),
        "final_ratio": math.log1p(min(final, 1e15)) - math.log1p(min(biggest, 1e15)),
        "final_signed": float(bool(re.search(r"-\s*\$?\d", final_line))),
    }


def agreement(answers: Sequence[str]) -> float:
    """The part of several sampled answers that says the same as the most common one: the same last number where they have
    numbers, else the same words. NaN with fewer than two."""
    if len(answers) < 2:
        return math.nan
    said = [repr(found[-1]) if (found := numbers(answer)) else " ".join(answer.lower().split()) for answer in answers]
    return max(map(said.count, said)) / len(said)


def confidence(log_probabilities: Sequence[float], second: Sequence[float] | None = None) -> dict[str, float]:
    """Of the tokens of an answer: the mean and the least log probability, and with those of the second-best tokens the mean and
    least margin between the two. Empty without tokens."""
    if not len(log_probabilities):
        return {}
    found = {"logprob_mean": sum(log_probabilities) / len(log_probabilities), "logprob_least": min(log_probabilities)}
    if second is not None:
        margins = [a - b for a, b in zip(log_probabilities, second, strict=True)]
        found |= {"margin_mean": sum(margins) / len(margins), "margin_least": min(margins)}
    return found
