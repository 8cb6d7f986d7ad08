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


def tokenize(papers: pa.Table, *, tokenizer: PreTrainedTokenizerBase, text_fields: str,
             max_length: int) -> pa.Table:
    """Return text, input_ids (int32), length (tokens after truncation) and truncated of papers.

    Training and prediction read papers by this one function.
    """
    read = texts(papers, text_fields)
    backend = tokenizer.backend_tokenizer  # what tokenizer(read) calls, and much that is unused
    if backend.padding or (backend.truncation or {}).get("max_length") != max_length:
        backend.no_padding()  # only then: it waits for other threads that tokenize
        backend.enable_truncation(max_length)
    encoded = backend.encode_batch_fast(read.to_pylist())
    input_ids = pa.array([encoding.ids for encoding in encoded], pa.list_(pa.int32()))
    return pa.table({
        "text": read, "input_ids": input_ids, "length": pc.list_value_length(input_ids),
        "truncated": pa.array([bool(encoding.overflowing) for encoding in encoded], pa.bool_()),
    })
