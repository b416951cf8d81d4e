"""Write data/expected_ids_<name>.json: what transformers makes of the hard strings with a GGUF file's vocabulary.

    PYTHONPATH=.dev python tests/runtime/models/expected_ids.py smollm2 /path/to/model.gguf

It takes half a minute for a vocabulary of 262,144 tokens, which is why the answers are kept.
"""

import json
import sys
from pathlib import Path

DATA = Path(__file__).with_name("data")


def hard_strings() -> list[str]:
    """Texts that tokenizers disagree on: spaces, digits, scripts, emoji, broken words, control tokens in plain sight."""
    return json.loads((DATA / "hard_strings.json").read_text(encoding="utf-8"))


def transformers_ids(path: Path) -> list[list[int]]:
    """The ids of the hard strings by transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return [tokenizer.encode(text, add_special_tokens=False) for text in hard_strings()]


if __name__ == "__main__":
    name, model = sys.argv[1:]
    rows = (json.dumps(ids, separators=(",", ":")) for ids in transformers_ids(Path(model)))
    (DATA / f"expected_ids_{name}.json").write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
