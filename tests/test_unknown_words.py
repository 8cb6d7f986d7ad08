"""Words that the vocabulary has not are counted."""

import pytest

from nej.model import load_tokenizer
from nej.predicting.unknown_words import UnknownWords


@pytest.fixture(scope="module")
def tokenizer(tiny_model, tmp_path_factory):
    """Return a tokenizer that has pieces of words as well."""
    from transformers import BertTokenizer
    vocabulary = tmp_path_factory.mktemp("words") / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "robot",
                                     "##ic", "##s", "image"]))
    return BertTokenizer(vocab=str(vocabulary), do_lower_case=True)


@pytest.mark.parametrize("text, share", [
    ("robot image.", 0), ("robotics image .", 1 / 3), ("image robotics robots", 2 / 3),
    ("image zebra", 1 / 2), ("zebra", 1), ("", 0), ("robots", 1),
])
def test_the_share_of_words(tokenizer, text, share):
    ids = tokenizer(text)["input_ids"]
    assert UnknownWords(tokenizer).share(ids) == pytest.approx(share)


def test_a_real_vocabulary_has_its_own_words(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    assert UnknownWords(tokenizer).share(tokenizer("the image of a robot")["input_ids"]) == 0
