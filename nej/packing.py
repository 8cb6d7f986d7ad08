"""Papers end to end instead of padded: DistilBERT's forward pass on real tokens only.

The linear layers, which are most of the work, see one row per token. Attention goes paper by paper:
on a CPU one after the other, so that the scores stay in the processor's cache; on a GPU all in one
kernel, FlashAttention's for sequences of many lengths. The last layer computes only what the
classifier reads, the first token of each paper. The result is that of the usual forward pass.
"""

from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import dropout, embedding, linear, relu, scaled_dot_product_attention
from transformers import DistilBertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from nej.batching import IGNORED, targets


def pack(papers: list[dict], *, pad_token_id: int) -> dict[str, Any]:
    """Lay papers end to end: what `batching.collate` does, without padding.

    Returns:
        lengths (papers,) and input_ids (tokens,), int64; longest, an int, so that nobody waits for
        a GPU to know it; and `targets`. No papers give one of one token whose label is IGNORED.
    """
    papers = papers or [{"input_ids": [pad_token_id], "label": IGNORED}]
    lengths = [len(paper["input_ids"]) for paper in papers]
    return targets(papers) | {  # which come first: Trainer counts papers by the first tensor
        "lengths": torch.tensor(lengths), "longest": max(lengths),
        "input_ids": torch.from_numpy(
            np.concatenate([paper["input_ids"] for paper in papers]).astype(np.int64)),
    }


def take_packed(model: DistilBertForSequenceClassification) -> None:
    """Replace the model's forward by `packed_forward`; its weights and files stay as they are."""
    model.forward = MethodType(packed_forward, model)


def can_pack(device: str, bf16: bool) -> bool:
    """Return whether a device of this type can: any CPU; a GPU with FlashAttention, in bfloat16."""
    return device == "cpu" or (
        device == "cuda" and bf16 and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability() >= (8, 0))


def packed_forward(
    model: DistilBertForSequenceClassification, input_ids: torch.Tensor, lengths: torch.Tensor,
    longest: int,
) -> SequenceClassifierOutput:
    """Compute what `model.forward` does, from papers laid end to end.

    Args:
        input_ids: the tokens of all papers, one after the other, (tokens,).
        lengths: tokens of each paper, at least 1, (papers,).
        longest: the largest of them.

    Returns:
        logits (papers, classes).
    """
    pooled = relu(model.pre_classifier(packed_first_tokens(model, input_ids, lengths, longest)))
    return SequenceClassifierOutput(logits=model.classifier(model.dropout(pooled)))


class Rows(NamedTuple):
    """Which rows are whose, of papers end to end."""

    sizes: list[int]  # rows of each paper; on a GPU empty, as it would have to be waited for
    offsets: torch.Tensor  # where each paper begins and the last one ends, (papers + 1,) int32
    longest: int


def packed_first_tokens(
    model: DistilBertForSequenceClassification, input_ids: torch.Tensor, lengths: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """Return the last layer's first token of each paper, (papers, width); see `packed_forward`."""
    count, device = len(lengths), input_ids.device
    on_gpu = device.type == "cuda"
    offsets = torch.zeros(count + 1, dtype=torch.int32, device=device)
    offsets[1:] = lengths.cumsum(0)
    rows = Rows([] if on_gpu else lengths.tolist(), offsets, longest)
    firsts = Rows([] if on_gpu else [1] * count,
                  torch.arange(count + 1, dtype=torch.int32, device=device), 1)
    encoder = model.distilbert
    embeddings = encoder.embeddings
    starts = offsets[:-1].repeat_interleave(lengths, output_size=len(input_ids))
    positions = torch.arange(len(input_ids), device=device) - starts
    hidden = (embedding(input_ids, embeddings.word_embeddings.weight)
              + embedding(positions, embeddings.position_embeddings.weight))
    hidden = embeddings.dropout(embeddings.LayerNorm(hidden))
    *layers, last = encoder.transformer.layer
    for layer in layers:
        hidden = _block(layer, hidden, hidden, rows, rows)
    return _block(last, hidden[offsets[:-1]], hidden, firsts, rows)


def _block(layer: Any, asking: torch.Tensor, asked: torch.Tensor, asking_rows: Rows,
           asked_rows: Rows) -> torch.Tensor:
    """Run a TransformerBlock for the tokens `asking`, which attend to the tokens `asked`."""
    query, asked_parts = _before_attention(layer, asking, asked)
    rate = layer.attention.dropout.p if layer.training else 0.0
    if asked_parts.is_cuda:
        mixed = _flash(query, asked_parts, asking_rows, asked_rows, rate)
    elif rate == 0.0 and not (torch.is_grad_enabled() and asked_parts.requires_grad):
        mixed = _attend(query, asked_parts, asking_rows.sizes, asked_rows.sizes)
    else:
        mixed = _Attention.apply(query, asked_parts, asking_rows.sizes, asked_rows.sizes, rate)
    return _after_attention(layer, mixed, asking)


def _before_attention(layer: Any, asking: torch.Tensor, asked: torch.Tensor
                      ) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return query (asking tokens, heads, d), and key and value, (asked tokens, 2, heads, d).

    Where a layer's tokens ask each other, one product gives all: None, and query, key and value,
    (tokens, 3, heads, d).
    """
    attention = layer.attention
    heads = (attention.n_heads, attention.attention_head_size)
    parts = [attention.k_lin, attention.v_lin]
    query = None
    if asking is asked:
        parts.insert(0, attention.q_lin)
    else:
        query = attention.q_lin(asking).view(-1, *heads)
    asked_parts = linear(asked, torch.cat([part.weight for part in parts]),
                         torch.cat([part.bias for part in parts]))
    return query, asked_parts.view(-1, len(parts), *heads)


def _after_attention(layer: Any, mixed: torch.Tensor, asking: torch.Tensor) -> torch.Tensor:
    """Return the layer's output for the tokens `asking` from what they took from the others."""
    hidden = layer.sa_layer_norm(layer.attention.out_lin(mixed.flatten(1)) + asking)
    ffn = layer.ffn
    update = ffn.lin2(ffn.activation(ffn.lin1(hidden)))
    update = dropout(update, ffn.dropout.p, layer.training)
    return layer.output_layer_norm(update + hidden)


def _flash(query: torch.Tensor | None, asked: torch.Tensor, asking_rows: Rows, asked_rows: Rows,
           rate: float) -> torch.Tensor:
    """Compute what `_Attention` does, on a GPU: all papers in one kernel.

    torch.nn.attention.varlen.varlen_attn calls the same one, but has no dropout.
    """
    query, key, value = asked.unbind(1) if query is None else (query, *asked.unbind(1))
    mixed, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, asking_rows.offsets, asked_rows.offsets, asking_rows.longest,
        asked_rows.longest, rate, False, False)
    return mixed


def _attend(query: torch.Tensor | None, asked: torch.Tensor, asking_sizes: list[int],
            asked_sizes: list[int]) -> torch.Tensor:
    """Compute what `_Attention` does, where nothing is learned: torch's kernel is faster."""
    query, key, value = asked.unbind(1) if query is None else (query, *asked.unbind(1))
    result = torch.empty_like(query)
    for out, q, k, v in zip(
            result.split(asking_sizes), query.split(asking_sizes), key.split(asked_sizes),
            value.split(asked_sizes)):
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        out.copy_(scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    return result


class _Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v of each paper by itself (Vaswani et al. 2017, equation 1).

    Takes what `_before_attention` returns; the result is (asking tokens, heads, d). Written with
    its own backward pass because autograd's, of so many slices, would fill and add an array of all
    tokens for every one of them.
    """

    @staticmethod
    def forward(ctx, query, asked, asking_sizes, asked_sizes, dropout_rate):
        scale = asked.shape[-1] ** -0.5
        ctx.alone, ctx.rate = query is None, dropout_rate
        ctx.sizes = asking_sizes, asked_sizes
        asked = asked.permute(1, 2, 0, 3).contiguous()  # heads first: one copy, not one a paper
        query = asked[0] if query is None else query.transpose(0, 1)
        result = asked.new_empty(query.shape[1], query.shape[0], query.shape[2])
        saved = []
        for out, q, k, v in zip(
                result.split(asking_sizes), query.split(asking_sizes, 1),
                asked[-2].split(asked_sizes, 1), asked[-1].split(asked_sizes, 1)):
            weights = kept = torch.softmax(torch.bmm(q * scale, k.transpose(1, 2)), dim=-1)
            saved.append(weights)
            if dropout_rate:
                kept, mask = torch.native_dropout(weights, dropout_rate, True)
                saved.append(mask)
            out.copy_(torch.bmm(kept, v).transpose(0, 1))
        ctx.save_for_backward(query, asked, *saved)
        return result

    @staticmethod
    def backward(ctx, grad):
        query, asked, *rest = ctx.saved_tensors
        saved = iter(rest)
        asking_sizes, asked_sizes = ctx.sizes
        scale = asked.shape[-1] ** -0.5
        grad_asked = grad.new_empty(asked.shape[2], asked.shape[0], *grad.shape[1:])
        grad_query = grad_asked[:, 0] if ctx.alone else torch.empty_like(grad)
        grad = grad.transpose(0, 1).contiguous()
        for g, q, k, v, dq, dk, dv in zip(
                grad.split(asking_sizes, 1), query.split(asking_sizes, 1),
                asked[-2].split(asked_sizes, 1), asked[-1].split(asked_sizes, 1),
                grad_query.split(asking_sizes), grad_asked[:, -2].split(asked_sizes),
                grad_asked[:, -1].split(asked_sizes)):
            weights = kept = next(saved)
            grad_weights = torch.bmm(g, v.transpose(1, 2))
            if ctx.rate:
                mask = next(saved)
                kept = weights * mask / (1 - ctx.rate)
                grad_weights = grad_weights * mask / (1 - ctx.rate)
            dv.copy_(torch.bmm(kept.transpose(1, 2), g).transpose(0, 1))
            grad_scores = torch.ops.aten._softmax_backward_data(
                grad_weights, weights, -1, weights.dtype)
            dq.copy_(torch.bmm(grad_scores, k).mul_(scale).transpose(0, 1))
            dk.copy_(torch.bmm(grad_scores.transpose(1, 2), q).mul_(scale).transpose(0, 1))
        return None if ctx.alone else grad_query, grad_asked, None, None, None
