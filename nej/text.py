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
    encoded = tokenizer(read, truncation=True, max_length=max_length,
                        return_attention_mask=False, return_token_type_ids=False)
    return {
        "text": read, "input_ids": encoded["input_ids"],
        "length": [len(ids) for ids in encoded["input_ids"]],
        "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
    }
