"""What a model reads of a paper: its title and summary as one text, and as tokens."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

FEW_TEXTS = 100  # of which the words are not much fewer when each is counted once
WORDS_AT_ONCE = 500  # for each thread of the tokenizer


def texts(papers: pa.RecordBatch | pa.Table, text_fields: str) -> pa.Array:
    """Return what the model reads of each paper: `text_fields` as in Config."""
    if text_fields == "summary":
        return papers["summary"]
    titles = pc.if_else(pc.equal(papers["title"], ""), None, papers["title"])
    return pc.binary_join_element_wise(titles, papers["summary"], ". ", null_handling="skip")


def tokenize(papers: pa.Table, *, tokenizer: PreTrainedTokenizerBase, text_fields: str,
             max_length: int) -> pa.Table:
    """Return text, input_ids (int32), length (tokens after truncation) and truncated of papers.

    Training and prediction read papers by this one function. The input_ids are those of
    tokenizer(text, truncation=True, max_length=max_length), which cuts at the end: [CLS], the
    text's tokens, [SEP].
    """
    read = texts(papers, text_fields)
    found, ends = _tokens(read, tokenizer.backend_tokenizer)
    count, most = np.diff(ends), max_length - 2
    edges = np.append(0, np.cumsum(np.minimum(count, most) + 2))
    ids = np.empty(edges[-1], np.int32)
    inner = np.ones(len(ids), bool)
    for places, special in ((edges[:-1], tokenizer.cls_token_id),
                            (edges[1:] - 1, tokenizer.sep_token_id)):
        ids[places], inner[places] = special, False
    ids[inner] = found[np.arange(len(found)) - np.repeat(ends[:-1], count) < most]
    return pa.table({
        "text": read, "length": pa.array(np.diff(edges), pa.int32()), "truncated": count > most,
        "input_ids": pa.ListArray.from_arrays(pa.array(edges, pa.int32()), pa.array(ids))})


def _tokens(read: pa.ChunkedArray, backend: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of texts end to end, and where each begins and the last one ends.

    Of many texts each word is tokenized once, which takes half of the time.
    """
    if backend.padding or backend.truncation:  # only then: it waits for other threads that tokenize
        backend.no_padding()
        backend.no_truncation()
    if len(read) < FEW_TEXTS or not _takes_words(backend):
        encoded = backend.encode_batch_fast(read.to_pylist(), add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in encoded]
        return (np.concatenate([np.array([], np.int32), *ids]),
                np.append(0, np.cumsum([len(part) for part in ids], dtype=int)))
    split = pc.split_pattern(read.combine_chunks(), " ")
    words = split.flatten().dictionary_encode()
    distinct = words.dictionary.to_pylist()
    parts = [distinct[start:start + WORDS_AT_ONCE]
             for start in range(0, len(distinct), WORDS_AT_ONCE)]
    encoded = backend.encode_batch(parts, is_pretokenized=True, add_special_tokens=False)
    count = np.concatenate([np.bincount(np.array(encoding.word_ids, int), minlength=len(part))
                            for encoding, part in zip(encoded, parts)])
    of_words = pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(count)), pa.int32()),
        pa.array(np.concatenate([np.array(encoding.ids, np.int32) for encoding in encoded])))
    found = of_words.take(words.indices)
    return found.flatten().to_numpy(), found.offsets.to_numpy()[split.offsets.to_numpy()]


def _takes_words(backend: Any) -> bool:
    """Return whether the tokens of a text are those of its parts between spaces."""
    parts = [type(part).__name__ for part in (backend.normalizer, backend.pre_tokenizer)]
    return (parts == ["BertNormalizer", "BertPreTokenizer"]
            and all(token.content.split() == [token.content]
                    for token in backend.get_added_tokens_decoder().values()))
