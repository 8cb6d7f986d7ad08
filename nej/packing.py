"""Papers end to end instead of padded: DistilBERT's forward pass on real tokens only.

The linear layers, which are most of the work, see one row per token. Attention goes paper by paper:
on a CPU one after the other, so that the scores stay in the processor's cache; on a GPU all in one
kernel, FlashAttention's for sequences of many lengths. The last layer computes only what the
classifier reads, the first token of each paper. The result is that of the usual forward pass.

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


class Rows(NamedTuple):
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
    rows = Rows([] if on_gpu else lengths.tolist(), offsets, longest)
    firsts = Rows([] if on_gpu else [1] * count,
                  torch.arange(count + 1, dtype=torch.int32, device=device), 1)
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
    generator = np.random.SFC64(torch.randint(2 ** 63 - 1, ()).item())
    drawn = torch.from_numpy(generator.random_raw(-(-size // 4)).view(np.int16))[:size]
    return drawn.ge_(round(rate * 2 ** 16) - 2 ** 15).to(like.dtype).view(like.shape)


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
    result = torch.zeros_like(query)
    for out, q, k, v in zip(_papers(result, asking_sizes), _papers(query, asking_sizes),
                            _papers(key, asked_sizes), _papers(value, asked_sizes)):
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
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


class _Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v of each paper by itself (Vaswani et al. 2017, equation 1).

    Takes what `_before_attention` returns; the result is (asking tokens, heads, d). Written with
    its own backward pass because autograd's, of so many slices, would fill and add an array of all
    tokens for every one of them.
    """

    @staticmethod
    def forward(ctx, query, asked, asking_sizes, asked_sizes, dropout_rate):
        ctx.alone, ctx.rate, ctx.shape = query is None, dropout_rate, asked.shape
        ctx.sizes = asking_sizes, asked_sizes
        scale = asked.shape[-1] ** -0.5
        result = asked.new_zeros(len(asked if ctx.alone else query), *asked.shape[2:])
        saved = []
        for out, asking, rows in zip(
                _papers(result, asking_sizes),
                _papers(asked[:, 0] if ctx.alone else query, asking_sizes),
                _papers(asked, asked_sizes)):
            tiled = _tiled(rows)  # (2 or 3, heads, tokens, d)
            q = tiled[0].mul_(scale) if ctx.alone else asking.transpose(0, 1) * scale
            scores = torch.bmm(q, tiled[-2].transpose(1, 2))
            scores[..., len(rows):] = -torch.inf
            weights = kept = torch.softmax(scores, dim=-1)
            saved += [tiled, weights] if ctx.alone else [tiled, weights, q]
            if dropout_rate:
                saved.append(_kept(weights, dropout_rate))
                kept = weights * saved[-1]
            out.copy_(torch.bmm(kept, tiled[-1])[:, :len(out)].transpose(0, 1))
        ctx.save_for_backward(*saved)
        return result.mul_(1 / (1 - dropout_rate)) if dropout_rate else result

    @staticmethod
    def backward(ctx, grad):
        saved = iter(ctx.saved_tensors)
        asking_sizes, asked_sizes = ctx.sizes
        scale = grad.shape[-1] ** -0.5
        if ctx.rate:
            grad = grad * (1 / (1 - ctx.rate))
        grad_asked = grad.new_zeros(ctx.shape)
        grad_query = grad_asked[:, 0] if ctx.alone else torch.zeros_like(grad)
        for asking, dq, rows in zip(_papers(grad, asking_sizes), _papers(grad_query, asking_sizes),
                                    _papers(grad_asked, asked_sizes)):
            tiled, weights = next(saved), next(saved)
            q = tiled[0] if ctx.alone else next(saved)
            g = _tiled(asking) if ctx.alone else asking.transpose(0, 1)
            kept, grad_weights = weights, torch.bmm(g, tiled[-1].transpose(1, 2))
            if ctx.rate:
                mask = next(saved)
                kept = weights * mask
                grad_weights.mul_(mask)
            grad_scores = torch.ops.aten._softmax_backward_data(
                grad_weights, weights, -1, weights.dtype)
            found = torch.empty_like(tiled)
            torch.bmm(kept.transpose(1, 2), g, out=found[-1])
            torch.bmm(grad_scores.transpose(1, 2), q, out=found[-2])
            if ctx.alone:
                torch.bmm(grad_scores, tiled[-2], out=found[0]).mul_(scale)
            else:
                dq.copy_(torch.bmm(grad_scores, tiled[-2]).mul_(scale).transpose(0, 1))
            rows.copy_(found[:, :, :len(rows)].permute(2, 0, 1, 3))
        return None if ctx.alone else grad_query, grad_asked, None, None, None
