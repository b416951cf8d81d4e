"""BERT encoders in numpy: texts to vectors, and pairs of texts to scores (Devlin et al. 2018, arXiv:1810.04805).

float32 throughout; checked against transformers. Vectors are the mean over a text's tokens, scaled to length 1, as
sentence-transformers' models of this kind make them.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ...wire.errors import BadRequest, ContextLengthExceeded, ModelFileError

Array = NDArray[np.float32]
BATCH = 16  # texts of about the same length, computed together
FAMILIES = ("bert",)
PIECE = 32768  # numbers of an activation computed together
_ERFC_T = np.float32(0.3275911 * math.sqrt(0.5))
_ERFC = [np.float32(c / 2) for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)]  # of t^5 down to t


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text, or a pair of them: ids, and which of the two each is of."""

    ids: list[int]
    kinds: list[int]


class Encoder:
    """An encoder in memory. Safe from several threads."""

    def __init__(self, folder: Path) -> None:
        """From a Hugging Face folder. Raises ModelFileError."""
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            self._core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            weights = load_file(folder / "model.safetensors")
            self._heads = int(config["num_attention_heads"])
            self._layers = int(config["num_hidden_layers"])
            self._epsilon = float(config["layer_norm_eps"])
            self._activation = _ACTIVATIONS[config.get("hidden_act", "gelu")]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelFileError(f"{folder.name} is not a sound encoder") from error
        except Exception as error:  # what tokenizers raises
            raise ModelFileError(f"{folder.name} has no sound tokenizer") from error
        self._core.no_truncation()
        self._core.no_padding()
        self._weights = {name.removeprefix("bert."): np.ascontiguousarray(w, np.float32) for name, w in weights.items()}
        try:
            self._join()
            words, self._positions = (self._weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
            self.vocab, self.dim = words.shape
            self._check()
        except (KeyError, ValueError) as error:
            raise ModelFileError(f"{folder.name} lacks a weight, or has one of the wrong shape") from error

    @property
    def longest(self) -> int:
        """Tokens of a text, with the two that mark its ends."""
        return len(self._positions)

    @property
    def is_cross(self) -> bool:
        """Whether it scores pairs."""
        return "classifier.weight" in self._weights

    def tokens(self, text: str | Sequence[int], second: str | None = None, cut: int = 0) -> Tokens:
        """A text, given as ids maybe, or a pair; `cut`: no more than its first tokens. Raises ContextLengthExceeded,
        BadRequest."""
        if not isinstance(text, str):
            if not all(0 <= id < self.vocab for id in text):
                raise BadRequest(f"'input' has a token id outside of the vocabulary of {self.vocab} tokens.", param="input")
            ids, kinds = list(text), [0] * len(text)
        else:
            try:
                found = self._core.encode(text, second)
            except (UnicodeEncodeError, TypeError) as error:
                raise BadRequest("The text is not valid Unicode.", param="input") from error
            ids, kinds = found.ids, found.type_ids
        ids, kinds = (ids[:cut], kinds[:cut]) if cut else (ids, kinds)
        if len(ids) > self.longest:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.longest} tokens. However, your input has {len(ids)} tokens. "
                "Please shorten it.",
                param="input",
            )
        return Tokens(ids, kinds)

    def embed(self, texts: Sequence[Tokens]) -> Array:
        """[N, dim], each of length 1."""
        out = np.empty((len(texts), self.dim), np.float32)
        for rows in _batches(texts):
            hidden, mask = self._forward([texts[i] for i in rows])
            mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
            out[rows] = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        return out

    def score(self, pairs: Sequence[Tokens]) -> Array:
        """[N], the higher the better the pair; for cross-encoders only."""
        out = np.empty(len(pairs), np.float32)
        for rows in _batches(pairs):
            hidden, _ = self._forward([pairs[i] for i in rows])
            pooled = np.tanh(self._linear("pooler.dense", hidden[:, 0]))
            out[rows] = self._linear("classifier", pooled)[:, 0]
        return out

    def _join(self) -> None:
        """Queries, keys and values by one product; what scores are divided by is in the queries' weights. Raises KeyError,
        ValueError."""
        w = self._weights
        for layer in range(self._layers):
            at = f"encoder.layer.{layer}.attention.self."
            for kind in ("weight", "bias"):
                q, k, v = (w.pop(f"{at}{name}.{kind}") for name in ("query", "key", "value"))
                w[f"{at}joint.{kind}"] = np.concatenate([q / np.float32(math.sqrt(len(q) / self._heads)), k, v])

    def _check(self) -> None:
        """Try it on one token: a weight of the wrong shape shows. Raises KeyError, ValueError."""
        if self.dim % self._heads:
            raise ValueError("heads")
        self._forward([Tokens([0], [0])])

    def _forward(self, texts: Sequence[Tokens]) -> tuple[Array, Array]:
        """Hidden states [N, T, dim] and the mask [N, T] of what is a token."""
        longest = max(len(text.ids) for text in texts)
        ids, kinds = np.zeros((2, len(texts), longest), np.intp)
        mask = np.zeros((len(texts), longest), np.float32)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)], kinds[row, : len(text.ids)] = text.ids, text.kinds
            mask[row, : len(text.ids)] = 1
        w = self._weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][kinds]
        x = self._norm("embeddings.LayerNorm", x + self._positions[:longest])
        hidden_keys = None if mask.all() else np.where(mask[:, None, None, :] > 0, np.float32(0), np.float32(-1e30))
        for layer in range(self._layers):
            at = f"encoder.layer.{layer}."
            x = self._norm(f"{at}attention.output.LayerNorm", x + self._attend(at, x, hidden_keys))
            wide = self._activation(self._linear(f"{at}intermediate.dense", x))
            x = self._norm(f"{at}output.LayerNorm", x + self._linear(f"{at}output.dense", wide))
        return x, mask

    def _attend(self, at: str, x: Array, hidden_keys: Array | None) -> Array:
        n, t, _ = x.shape
        joint = self._linear(f"{at}attention.self.joint", x).reshape(n, t, 3, self._heads, -1)
        q, k, v = joint.transpose(2, 0, 3, 1, 4)  # [N, heads, T, d] each
        scores = q @ k.transpose(0, 1, 3, 2)
        if hidden_keys is not None:
            scores += hidden_keys
        scores -= scores.max(-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        mixed = weights @ v
        mixed /= weights.sum(-1, keepdims=True)
        return self._linear(f"{at}attention.output.dense", mixed.transpose(0, 2, 1, 3).reshape(n, t, -1))

    def _linear(self, name: str, x: Array) -> Array:
        weight = self._weights[f"{name}.weight"]
        out = x.reshape(-1, x.shape[-1]) @ weight.T  # one product, however many texts
        out += self._weights[f"{name}.bias"]
        return out.reshape(*x.shape[:-1], len(weight))

    def _norm(self, name: str, x: Array) -> Array:
        """In place."""
        x -= x.mean(-1, keepdims=True)
        squares = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
        x /= np.sqrt(squares + np.float32(self._epsilon))
        x *= self._weights[f"{name}.weight"]
        x += self._weights[f"{name}.bias"]
        return x


def is_encoder(path: Path) -> bool:
    """Whether a model folder holds one of these."""
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in FAMILIES


def _batches(texts: Sequence[Tokens]) -> list[list[int]]:
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]


def _gelu(x: Array) -> Array:
    """x * Phi(x), with erf to 1.5e-7 (Abramowitz and Stegun 7.1.26): max(x, 0) - |x| erfc(|x| / sqrt 2) / 2.

    In pieces that stay in the processor's cache: it is a third of an encoder's time otherwise.
    """
    out = np.empty(x.shape, np.float32)
    flat, to = x.reshape(-1), out.reshape(-1)
    z, t, tail = np.empty((3, min(PIECE, flat.size)), np.float32)
    for start in range(0, flat.size, PIECE):
        given, part = flat[start : start + PIECE], to[start : start + PIECE]
        if len(given) < len(z):
            z, t, tail = z[: len(given)], t[: len(given)], tail[: len(given)]
        np.abs(given, out=z)
        np.multiply(z, _ERFC_T, out=t)
        t += 1
        np.reciprocal(t, out=t)
        np.multiply(t, _ERFC[0], out=tail)
        for factor in _ERFC[1:]:
            tail += factor
            tail *= t
        tail *= z
        np.multiply(z, z, out=z)
        z *= np.float32(-0.5)
        tail *= np.exp(z, out=z)
        np.maximum(given, 0, out=part)
        part -= tail
    return out


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return 0.5 * x * (1 + np.tanh(inner))


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu, "gelu_new": _gelu_tanh, "gelu_pytorch_tanh": _gelu_tanh, "relu": _relu,
}  # fmt: skip
