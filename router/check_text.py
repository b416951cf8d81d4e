"""Checks of what an answer says: words, an exact answer, a number, and quotations that stand in the context."""

import math
import re
import unicodedata
from collections.abc import Iterator

from ..wire.chat import ChatRequest, Text, ToolResult
from .check_types import Answer, Check, time_left

# Each check returns why the answer fails, or "".


def contains(check: Check, answer: Answer) -> str:
    """All of the values stand in the answer, or any; letters' case, width and the amount of white space aside."""
    text = plain(answer.text)
    missing = [value for value in check["values"] if plain(value) not in text]
    if not missing or (check.get("any") and len(missing) < len(check["values"])):
        return ""
    return f"the answer does not contain {' or '.join(map(repr, missing)) if check.get('any') else repr(missing[0])}"


def equals(check: Check, answer: Answer) -> str:
    """The answer is the value, or one of them, and says nothing else; surrounding punctuation aside."""
    values = [check["value"]] if isinstance(check["value"], str) else check["value"]
    return "" if bare(answer.text) in map(bare, values) else "the answer is not the expected one"


def plain(text: str) -> str:
    """Text as it is compared: Unicode NFKC, case folded, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def bare(text: str) -> str:
    """Plain text without the marks around it. What is all marks stays; a sign, a percent or a point before digits does too."""
    inner = plain(text)
    return inner.lstrip("\"'`“”‘’«»„([{<*_ ").rstrip("\"'`“”‘’«»„)]}>*_ .,;:!?…。、") or inner


# ------------------------------------------------------------------------------------------------------------- numbers

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.)\]])[-−+])?[ ]?[$€£¥]?(?P<whole>{_DIGITS})(?P<exp>e[-+]?[0-9]{{1,4}}(?![\w]))?"
    r"(?:\s?/\s?(?P<below>[0-9]+(?:\.[0-9]+)?))?(?P<percent>\s?%)?",
    re.IGNORECASE,
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([^{}]*)\}\s*\{\s*([^{}]*)\}")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")


def number(check: Check, answer: Answer) -> str:
    """The answer's last number is the value; where it has \\boxed{} or ####, the last one in that."""
    found = last_number(answer.text)
    if not found:
        return "the answer holds no number"
    wanted = last_number(str(check["value"]))
    within = check.get("tolerance")
    for x in found:
        for y in wanted:
            if abs(x - y) <= within if within is not None else math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-12):
                return ""
    return f"the answer's number is {found[0]:.12g}, which is not right"


def last_number(text: str) -> tuple[float, ...]:
    """What the last number of the text can mean: () for none, two values for a percentage."""
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/").replace("\\$", "$").replace("\\%", "%").replace("\\,", "")
    text = text.replace("\\!", "").replace("{,}", ",")
    if boxed := _BOXED.findall(text):
        text = boxed[-1]
    elif "####" in text and _NUMBER.search(text.rsplit("####", 1)[1]):
        text = text.rsplit("####", 1)[1].strip().split("\n", 1)[0]
    found: tuple[float, ...] = ()
    for match in _NUMBER.finditer(_FRACTION.sub(r"\1/\2", text)):
        found = _values(match) or found
    return found


def _values(match: "re.Match[str]") -> tuple[float, ...]:
    below = float(match["below"]) if match["below"] else 1.0
    if not below:
        return ()
    value = float(match["whole"].replace(",", "") + (match["exp"] or "")) / below
    value = -value if match["sign"] and match["sign"] != "+" else value
    return (value, value / 100) if match["percent"] else (value,)


# ----------------------------------------------------------------------------------------------------------- citations

MIN_WORDS = 4  # of a quotation; fewer are a name or a doubt
_QUOTED = re.compile(r"“([^“”]+)”|„([^„“”]+)[“”]|«([^«»]+)»|\"([^\"]+)\"")
_GAP = re.compile(r"\[…\]|\[\.\.\.\]|…|\.\.\.")
_MARK = re.compile(r"\[([0-9]{1,4}(?:\s?[,;–-]\s?[0-9]{1,4})*)\]")
_NUMBERED = re.compile(
    r"\[([0-9]{1,4})\]|\b(?:document|source|passage|doc|result)\s?#?([0-9]{1,4})\b|\b(?:index|id|n)\s?=\s?\"?([0-9]{1,4})\b",
    re.IGNORECASE,
)


def citation(check: Check, answer: Answer) -> str:
    """What the answer quotes, or the documents it points to, is in what it was given; `min` of them at least (1)."""
    given = context(answer.request) if answer.request else ""
    wanted = check.get("min", 1)
    if check.get("style", "quotes") == "numbers":
        known = {int(n) for match in _NUMBERED.findall(given) for n in match if n}
        cited = {n for marks in _MARK.findall(answer.text) for n in _numbers(marks)}
        if strange := sorted(cited - known):
            return f"the answer cites [{strange[0]}], and there is no document of that number"
        return "" if len(cited) >= wanted else f"the answer cites {len(cited)} documents; needed: {wanted}"
    given, count = plain(given), 0
    for passage in quotations(answer.text):
        time_left()
        if any(part not in given for part in _parts(passage)):
            return f'the answer quotes what was not said: "{passage[:120]}"'
        count += 1
    return "" if count >= wanted else f"the answer quotes {count} passages of {MIN_WORDS} words or more; needed: {wanted}"


def context(request: ChatRequest) -> str:
    """All text that the model was given by others: earlier answers of its own prove nothing."""
    pieces: list[str] = []
    for message in request.messages:
        for block in message.content if message.role != "assistant" else ():
            content = block.content if isinstance(block, ToolResult) else (block,)
            pieces += [b.text for b in content if isinstance(b, Text)]
    return "\n".join(pieces)


def quotations(text: str) -> Iterator[str]:
    """The quoted passages of four words or more."""
    for groups in _QUOTED.findall(text):
        passage = next(group for group in groups if group)
        if len(passage.split()) >= MIN_WORDS:
            yield passage


def _parts(passage: str) -> list[str]:
    """A quotation's pieces between its gaps, as they are compared; a comma or point set inside of the marks doesn't count."""
    return [part for piece in _GAP.split(passage) if (part := plain(piece).rstrip(".,;:!?"))]


def _numbers(marks: str) -> Iterator[int]:
    """`1, 3-5` are 1, 3, 4 and 5; a range is followed for a hundred."""
    for mark in re.split("[,;]", marks):
        ends = [int(n) for n in re.split("[–-]", mark)]
        yield from ends
        yield from range(ends[0], min(ends[-1], ends[0] + 100))
