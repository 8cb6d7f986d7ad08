"""What a model reads of a paper: its title and summary as one text, and as tokens."""

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase


def texts(papers: pa.RecordBatch | pa.Table, text_fields: str) -> pa.Array:
    """Return what the model reads of each paper: `text_fields` as in Config."""
    if text_fields == "summary":
        return papers["summary"]
    titles = pc.if_else(pc.equal(papers["title"], ""), None, papers["title"])
    return pc.binary_join_element_wise(titles, papers["summary"], ". ", null_handling="skip")


def tokenize(batch: dict[str, list], *, tokenizer: PreTrainedTokenizerBase, text_fields: str,
             max_length: int) -> dict[str, list]:
    """Return text, input_ids, length (tokens after truncation) and truncated for some papers.

    Training and prediction read papers by this one function.
    """
    table = pa.table({field: batch[field] for field in ("title", "summary")})
    read = texts(table, text_fields).to_pylist()
    backend = tokenizer.backend_tokenizer  # what tokenizer(read) calls, and much that is unused
    backend.no_padding()
    backend.enable_truncation(max_length)
    encoded = backend.encode_batch_fast(read)
    input_ids = [encoding.ids for encoding in encoded]
    return {
        "text": read, "input_ids": input_ids, "length": [len(ids) for ids in input_ids],
        "truncated": [bool(encoding.overflowing) for encoding in encoded],
    }
