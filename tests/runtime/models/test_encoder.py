"""The numpy encoder beside transformers' own, on random weights of odd shapes and on the real model where it is at hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from baseload.runtime.models import encoder as encoder_module
from baseload.runtime.models.encoder import Encoder, is_encoder
from baseload.wire.errors import BadRequest, ContextLengthExceeded, ModelFileError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "cat", "dog", "##s"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cross-encoder as transformers saves it."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(3)
    place = tmp_path_factory.mktemp("encoder")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=32, initializer_range=0.4,
    )  # fmt: skip
    config.num_labels = 1
    BertForSequenceClassification(config).eval().save_pretrained(place)
    core = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    core.save(str(place / "tokenizer.json"))
    return place


def test_vectors_are_transformers(folder):
    from transformers import BertModel

    ours, theirs = Encoder(folder), BertModel.from_pretrained(folder).eval()
    texts = ["a b c", "cat dogs a a b", "d", "a " * 25]
    found = ours.embed([ours.tokens(text) for text in texts])
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            hidden = theirs(torch.tensor([ours.tokens(text).ids])).last_hidden_state[0].mean(0)
        assert np.abs(vector - (hidden / hidden.norm()).numpy()).max() < 2e-6


def test_scores_are_transformers(folder):
    from transformers import BertForSequenceClassification

    ours, theirs = Encoder(folder), BertForSequenceClassification.from_pretrained(folder).eval()
    assert ours.is_cross
    pairs = [ours.tokens("cat", second) for second in ("a b", "dogs", "c d a a")]
    for pair, score in zip(pairs, ours.score(pairs), strict=True):
        with torch.no_grad():
            wanted = theirs(torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.kinds])).logits[0, 0]
        assert abs(score - wanted.item()) < 2e-5


def test_a_text_is_the_same_in_any_company(folder):
    ours = Encoder(folder)
    texts = [ours.tokens(t) for t in ("a", "b c d", "cat dog")]
    alone = np.concatenate([ours.embed([text]) for text in texts])
    assert np.abs(ours.embed(texts) - alone).max() < 1e-6


def test_what_does_not_fit_is_refused(folder, tmp_path):
    ours = Encoder(folder)
    with pytest.raises(ContextLengthExceeded, match="32 tokens"):
        ours.tokens("a " * 31)
    with pytest.raises(BadRequest, match="vocabulary"):
        ours.tokens([4, 99])
    with pytest.raises(ModelFileError):
        Encoder(tmp_path)
    assert is_encoder(folder) and not is_encoder(tmp_path)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (1, encoder_module.PIECE + 3), (2, 128, 1536)])
def test_the_activation_is_gelu(shape: tuple[int, ...]):
    x = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
    given = x.copy()
    right = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.reshape(-1)[:5000].astype(float)]
    found = encoder_module._gelu(x)
    assert found.shape == shape and np.abs(found.reshape(-1)[:5000] - right).max() < 2e-6
    assert np.array_equal(x, given)
