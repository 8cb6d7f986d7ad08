"""Texts have the tokens that the tokenizer gives, few and many."""

import random
import unicodedata

import pyarrow as pa
import pytest
from tokenizers import AddedToken
from transformers import BertTokenizer

from nej.text import FEW_TEXTS, _takes_words, tokenize

ODD = ["naïve", "Erdős–Rényi", "ΑΣ", "ﬁne", "数学と", "e\u0301", "\u0301x", "a\x00b", "\x1c", "\u200b",
       "\ufffd", "\u00a0x", "tab\there", "new\nline", "\u2028", "[SEP]", "a[MASK]b", "[UNK]", "",
       "$x_{i}^2$", "x" * 120, "🤖🙂", "co-operate,", "İI", "ß", "\ud7ff", "한국어", "cafe\u0301s"]


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(3)
    usual = ["we", "train", "a", "robot", "arm", "with", "deep", "neural", "networks", "the"]

    def word():
        if draw.random() < 0.1:
            return "".join(chr(draw.randrange(*draw.choice(
                ((1, 0x300), (0x2000, 0x3100), (0x1f000, 0x1f700))))) for _ in range(3))
        return draw.choice(ODD if draw.random() < 0.4 else usual)
    return [" ".join(word() for _ in range(draw.randrange(60))) for _ in range(4 * FEW_TEXTS)]


@pytest.fixture
def tokenizer(texts, tmp_path):
    """A tokenizer that knows every character, so that none is hidden in an unknown word."""
    letters = sorted(set(unicodedata.normalize("NFD", " ".join(texts).lower())) - set("\n\r"))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters,
                  *(f"##{letter}" for letter in letters), "deep", "neural", "net", "##works"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    return BertTokenizer(vocab=str(tmp_path / "vocab.txt"), do_lower_case=True)


def read(texts, tokenizer, max_length):
    return tokenize(pa.table({"summary": texts}), tokenizer=tokenizer, text_fields="summary",
                    max_length=max_length)


@pytest.mark.parametrize("number", [1, FEW_TEXTS - 1, FEW_TEXTS, 4 * FEW_TEXTS])
@pytest.mark.parametrize("max_length", [3, 32, 512])
def test_texts_have_the_tokens_that_the_tokenizer_gives(tokenizer, texts, number, max_length):
    assert _takes_words(tokenizer.backend_tokenizer)
    expected = tokenizer(texts[:number], truncation=True, max_length=max_length)["input_ids"]
    found = read(texts[:number], tokenizer, max_length)
    assert found["input_ids"].to_pylist() == expected
    assert found["length"].to_pylist() == list(map(len, expected))
    whole = tokenizer(texts[:number])["input_ids"]
    assert found["truncated"].to_pylist() == [len(ids) > max_length for ids in whole]
    assert len(set().union(*tokenizer(texts)["input_ids"])) > 200  # or it would show little


@pytest.mark.parametrize("added, words", [
    (AddedToken("deep neural"), False), (AddedToken("deep\u00a0neural", normalized=True), False),
    (AddedToken("neural", lstrip=True, rstrip=True), True),
    (AddedToken("eura", single_word=True), True), (AddedToken("p-n", normalized=True), True)])
def test_added_tokens_are_found_where_the_tokenizer_finds_them(tokenizer, texts, added, words):
    tokenizer.add_tokens([added])
    assert _takes_words(tokenizer.backend_tokenizer) is words
    several = [*texts, "a deep neural arm", "(neural) eura deep-neural  neural"]
    expected = tokenizer(several, truncation=True, max_length=512)["input_ids"]
    assert any(tokenizer.convert_tokens_to_ids(added.content) in ids for ids in expected)
    assert read(several, tokenizer, 512)["input_ids"].to_pylist() == expected


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("number", [20, 2 * FEW_TEXTS])
def test_an_earlier_use_of_the_tokenizer_leaves_no_traces(tokenizer, texts, number, cut):
    expected = read(texts[:number], tokenizer, 64)
    tokenizer(texts[:2], padding="max_length", truncation=cut, max_length=40)
    assert read(texts[:number], tokenizer, 64).equals(expected)


@pytest.mark.parametrize("number", [FEW_TEXTS, 4 * FEW_TEXTS])  # then 20 fewer
def test_some_rows_of_a_table_are_read(tokenizer, texts, number):
    several = pa.table({"summary": pa.chunked_array([texts[:50], texts[50:number]])})
    how = {"tokenizer": tokenizer, "text_fields": "summary", "max_length": 64}
    assert tokenize(several.slice(20), **how).equals(tokenize(several, **how).slice(20))
    assert len(tokenize(several.slice(0, 0), **how)) == 0
