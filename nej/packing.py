"""Papers end to end instead of padded: DistilBERT's forward pass on real tokens only.

The linear layers, which are most of the work, see one row per token. Attention goes paper by paper:
on a CPU one after the other, so that the scores stay in the processor's cache; on a GPU all in one
kernel, FlashAttention's for sequences of many lengths. The last layer computes only what the
classifier reads, the first token of each paper, on a CPU without a key or a value of the others.
The result is that of the usual forward pass.

A CPU's library makes a kernel for every shape that it meets, in milliseconds, and keeps a thousand:
there a few rows of zeros fill up tokens and papers, so that few shapes are met again and again.
"""

from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import dropout, embedding, linear, pad, relu, scaled_dot_product_attention
from transformers import DistilBertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from nej.batching import IGNORED, targets

TILE = 32  # rows: numbers of 2 bytes that fill a line of the processor's cache


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


def filler(tokens: int, device: str) -> int:
    """Return how many rows of zeros follow the tokens on a device of this type: for a CPU up to a
    sixteenth of them, so that there are 16 shapes from one power of two to the next.
    """
    return -tokens % max(TILE, 2 ** (tokens.bit_length() - 5)) if device == "cpu" else 0


class PaperRows(NamedTuple):
    """Which rows are whose, of papers end to end; what fills up, after them, is nobody's."""

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
    rows = PaperRows([] if on_gpu else lengths.tolist(), offsets, longest)
    encoder = model.distilbert
    embeddings = encoder.embeddings
    starts = offsets[:-1].repeat_interleave(lengths, output_size=len(input_ids))
    positions = torch.arange(len(input_ids), device=device) - starts
    fill = (0, filler(len(input_ids), device.type))
    input_ids, positions = pad(input_ids, fill), pad(positions, fill)
    hidden = (embedding(input_ids, embeddings.word_embeddings.weight)
              + embedding(positions, embeddings.position_embeddings.weight))
    hidden = _dropout(embeddings.LayerNorm(hidden), embeddings.dropout.p, model.training)
    *layers, last = encoder.transformer.layer
    for layer in layers:
        hidden = _after_attention(layer, _attention(layer, hidden, rows), hidden)
    firsts = hidden[offsets[:-1]]
    return _after_attention(last, _first_attention(last, firsts, hidden, rows), firsts)


def _attention(layer: Any, hidden: torch.Tensor, rows: PaperRows) -> torch.Tensor:
    """Return what each token takes from those of its paper, (tokens, heads, d)."""
    attention = layer.attention
    asked = _projected(attention, "qkv", hidden)
    rate = attention.dropout.p if layer.training else 0.0
    if asked.is_cuda:
        query, key, value = asked.unbind(1)
        return _flash(query, key, value, rows, rows, rate)
    if rate == 0.0 and not (torch.is_grad_enabled() and asked.requires_grad):
        return _attend_without_gradient(asked, rows.sizes)
    return _PaperAttention.apply(asked, rows.sizes, rate)


def _first_attention(layer: Any, firsts: torch.Tensor, hidden: torch.Tensor, rows: PaperRows
                     ) -> torch.Tensor:
    """Return what each paper's first token takes from all, (papers, heads, d).

    With one query a paper, a head's q (W_k x + b_k) is less work as (q W_k) x + q b_k, and the sum
    of p (W_v x + b_v) as W_v (sum of p x) + b_v (sum of p): so the matrices meet first tokens only.
    """
    attention = layer.attention
    rate = attention.dropout.p if layer.training else 0.0
    query = _projected(attention, "q", firsts)[:, 0]
    if query.is_cuda:
        ends = torch.arange(len(firsts) + 1, dtype=torch.int32, device=query.device)
        single = PaperRows([], ends, 1)
        key, value = _projected(attention, "kv", hidden).unbind(1)
        return _flash(query, key, value, single, rows, rate)
    # by groups, so that a long paper among many short ones makes few of them long
    groups = [rows.sizes[first:first + TILE] for first in range(0, len(firsts), TILE)]
    return torch.cat([
        _take_once(attention, *group, rate) for group in zip(
            query.split(TILE), _papers(hidden, [sum(sizes) for sizes in groups]), groups)])


def _take_once(attention: Any, query: torch.Tensor, rows: torch.Tensor, sizes: list[int],
               rate: float) -> torch.Tensor:
    """Do what `_first_attention` does on a CPU, for a few papers, filled up to one length."""
    count, heads, width = query.shape
    lengths, padded_length = torch.tensor(sizes), -(-max(sizes) // (4 * TILE)) * 4 * TILE
    shifts = torch.arange(count) * padded_length - (lengths.cumsum(0) - lengths)
    places = torch.arange(len(rows)) + shifts.repeat_interleave(lengths, output_size=len(rows))
    padded = query.new_zeros(count * padded_length, heads * width).index_copy(
        0, places, rows.to(query.dtype)).view(count, padded_length, -1)
    query = query.transpose(0, 1) * width ** -0.5  # (heads, papers, d)
    key_weight, value_weight, key_bias, value_bias = (
        part.view(heads, width, -1) for part in (
            attention.k_lin.weight, attention.v_lin.weight,
            attention.k_lin.bias, attention.v_lin.bias))
    scores = (torch.bmm(query, key_weight).transpose(0, 1) @ padded.transpose(1, 2)
              + torch.bmm(query, key_bias).transpose(0, 1))
    outside = torch.arange(padded_length) >= lengths[:, None, None]
    weights = scores.masked_fill(outside, -torch.inf).softmax(-1).to(padded.dtype)
    weights = _dropout(weights, rate, True)  # (papers, heads, tokens)
    mixed = (torch.bmm((weights @ padded).transpose(0, 1), value_weight.transpose(1, 2))
             + weights.sum(-1, keepdim=True).transpose(0, 1) * value_bias.transpose(1, 2))
    return mixed.transpose(0, 1)


def _projected(attention: Any, names: str, rows: torch.Tensor) -> torch.Tensor:
    """Return queries, keys or values (q, k, v) of the rows by one product: (rows, names, heads, d).
    """
    parts = [getattr(attention, f"{name}_lin") for name in names]
    return linear(rows, torch.cat([part.weight for part in parts]),
                  torch.cat([part.bias for part in parts])).view(
        -1, len(parts), attention.n_heads, attention.attention_head_size)


def _after_attention(layer: Any, mixed: torch.Tensor, asking: torch.Tensor) -> torch.Tensor:
    """Return the layer's output for the tokens `asking` from what they took from the others."""
    hidden = layer.sa_layer_norm(layer.attention.out_lin(mixed.flatten(1)) + asking)
    ffn = layer.ffn
    update = ffn.lin2(ffn.activation(ffn.lin1(hidden)))
    update = _dropout(update, ffn.dropout.p, layer.training)
    return layer.output_layer_norm(update + hidden)


def _dropout(rows: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Return the rows after dropout (Srivastava et al. 2014); in evaluation, as they are."""
    if rows.is_cuda or not training or rate == 0.0:
        return dropout(rows, rate, training)
    return (rows * _kept(rows, rate)).mul_(1 / (1 - rate))


def _kept(like: torch.Tensor, rate: float) -> torch.Tensor:
    """Return ones, and zeros for the share `rate` that is dropped, in the shape and type of `like`.

    torch itself takes longer to draw a number for each place than attention for all else. Here one
    of 64 bits, from a generator that torch's seeds, serves four: the rate is true to 1 in 131,072.
    """
    size = like.numel()
    generator = np.random.SFC64(int(torch.randint(2 ** 63 - 1, ())))
    drawn = torch.from_numpy(generator.random_raw(-(-size // 4)).view(np.int16))[:size]
    return drawn.ge_(round(rate * 2 ** 16) - 2 ** 15).to(like.dtype).view(like.shape)


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, asking: PaperRows,
           asked: PaperRows, rate: float) -> torch.Tensor:
    """Compute what `_PaperAttention` does, on a GPU: all papers in one kernel.

    torch.nn.attention.varlen.varlen_attn calls the same one, but has no dropout.
    """
    mixed, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, asking.offsets, asked.offsets, asking.longest, asked.longest, rate,
        False, False)
    return mixed


def _attend_without_gradient(asked: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Compute what `_PaperAttention` does, where nothing is learned: torch's kernel is faster."""
    result = torch.zeros_like(asked[:, 0])
    for out, rows in zip(_papers(result, sizes), _papers(asked, sizes)):
        q, k, v = rows.permute(1, 2, 0, 3)[:, None]
        out.copy_(scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    return result


def _papers(rows: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, ...]:
    """Return each paper's rows."""
    return rows[:sum(sizes)].split(sizes)


def _tiled(rows: torch.Tensor) -> torch.Tensor:
    """Return a paper's rows (tokens, ..., d) as (..., tokens, d), zeros filling up the last tile.
    """
    size, between, width = len(rows), rows.shape[1:-1], rows.shape[-1]
    result = rows.new_empty(*between, -(-size // TILE) * TILE, width)
    result[..., size:, :] = 0
    result[..., :size, :] = rows.movedim(0, -2)
    return result


class _PaperAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v of each paper by itself (Vaswani et al. 2017, equation 1).

    Takes query, key and value, (tokens, 3, heads, d); the result is (tokens, heads, d). It has its
    own backward pass because autograd's, of so many slices, would fill and add an array of all
    tokens for every one of them.
    """

    @staticmethod
    def forward(ctx, asked, sizes, dropout_rate):
        ctx.sizes, ctx.rate, ctx.shape = sizes, dropout_rate, asked.shape
        scale = asked.shape[-1] ** -0.5
        result = asked.new_zeros(len(asked), *asked.shape[2:])
        saved = []
        for out, rows in zip(_papers(result, sizes), _papers(asked, sizes)):
            tiled = _tiled(rows)  # (3, heads, tokens, d)
            scores = torch.bmm(tiled[0].mul_(scale), tiled[1].transpose(1, 2))
            scores[..., len(rows):] = -torch.inf
            weights = kept = torch.softmax(scores, dim=-1)
            saved += [tiled, weights]
            if dropout_rate:
                saved.append(_kept(weights, dropout_rate))
                kept = weights * saved[-1]
            out.copy_(torch.bmm(kept, tiled[2])[:, :len(out)].transpose(0, 1))
        ctx.save_for_backward(*saved)
        return result.mul_(1 / (1 - dropout_rate)) if dropout_rate else result

    @staticmethod
    def backward(ctx, grad):
        saved = iter(ctx.saved_tensors)
        scale = grad.shape[-1] ** -0.5
        if ctx.rate:
            grad = grad * (1 / (1 - ctx.rate))
        grad_asked = grad.new_zeros(ctx.shape)
        for asking, rows in zip(_papers(grad, ctx.sizes), _papers(grad_asked, ctx.sizes)):
            tiled, weights = next(saved), next(saved)
            g = _tiled(asking)
            kept, grad_weights = weights, torch.bmm(g, tiled[2].transpose(1, 2))
            if ctx.rate:
                mask = next(saved)
                kept = weights * mask
                grad_weights.mul_(mask)
            grad_scores = torch.ops.aten._softmax_backward_data(
                grad_weights, weights, -1, weights.dtype)
            found = torch.empty_like(tiled)
            torch.bmm(grad_scores, tiled[1], out=found[0]).mul_(scale)
            torch.bmm(grad_scores.transpose(1, 2), tiled[0], out=found[1])
            torch.bmm(kept.transpose(1, 2), g, out=found[2])
            rows.copy_(found[:, :, :len(rows)].permute(2, 0, 1, 3))
        return grad_asked, None, None
