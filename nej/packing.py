"""Papers end to end instead of padded: DistilBERT's forward pass on real tokens only.

The linear layers, which are most of the work, see one row per token. Attention goes paper by
paper, so that its scores stay in the processor's cache. The last layer computes only what the
classifier reads, the first token of each paper. The result is that of the usual forward pass; on
two CPU cores it takes about half the time. A GPU wants larger pieces of work and gets padded
batches.
"""

from types import MethodType
from typing import Any

import torch
from torch.nn.functional import dropout, embedding, linear, relu, scaled_dot_product_attention
from transformers import DistilBertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from nej.batching import IGNORED, targets


def pack(papers: list[dict], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Lay papers end to end: what `batching.collate` does, without padding.

    Returns:
        lengths (papers,) and input_ids (tokens,), int64, and `targets`. No papers give one of one
        token whose label is IGNORED.
    """
    papers = papers or [{"input_ids": [pad_token_id], "label": IGNORED}]
    return targets(papers) | {  # which come first: Trainer counts papers by the first tensor
        "lengths": torch.tensor([len(paper["input_ids"]) for paper in papers]),
        "input_ids": torch.cat([torch.as_tensor(paper["input_ids"]).long() for paper in papers]),
    }


def take_packed(model: DistilBertForSequenceClassification) -> None:
    """Replace the model's forward by `packed_forward`; its weights and files stay as they are."""
    model.forward = MethodType(packed_forward, model)


def packed_forward(
    model: DistilBertForSequenceClassification, input_ids: torch.Tensor, lengths: torch.Tensor,
) -> SequenceClassifierOutput:
    """Compute what `model.forward` does, from papers laid end to end.

    Args:
        input_ids: the tokens of all papers, one after the other, (tokens,).
        lengths: tokens of each paper, at least 1, (papers,).

    Returns:
        logits (papers, classes).
    """
    pooled = relu(model.pre_classifier(packed_first_tokens(model, input_ids, lengths)))
    return SequenceClassifierOutput(logits=model.classifier(model.dropout(pooled)))


def packed_first_tokens(
    model: DistilBertForSequenceClassification, input_ids: torch.Tensor, lengths: torch.Tensor,
) -> torch.Tensor:
    """Return the last layer's first token of each paper, (papers, width); see `packed_forward`."""
    sizes = lengths.tolist()
    encoder = model.distilbert
    embeddings = encoder.embeddings
    positions = torch.cat([torch.arange(size, device=input_ids.device) for size in sizes])
    hidden = (embedding(input_ids, embeddings.word_embeddings.weight)
              + embedding(positions, embeddings.position_embeddings.weight))
    hidden = embeddings.dropout(embeddings.LayerNorm(hidden))
    *layers, last = encoder.transformer.layer
    for layer in layers:
        hidden = _block(layer, hidden, hidden, sizes, sizes)
    first = hidden[lengths.cumsum(0) - lengths]
    return _block(last, first, hidden, [1] * len(sizes), sizes)


def _block(layer: Any, asking: torch.Tensor, asked: torch.Tensor,
           asking_sizes: list[int], asked_sizes: list[int]) -> torch.Tensor:
    """Run a TransformerBlock for the tokens `asking`, which attend to the tokens `asked`."""
    attention = layer.attention
    heads = (attention.n_heads, attention.attention_head_size)
    query = attention.q_lin(asking).view(-1, *heads)
    key_value = linear(
        asked, torch.cat([attention.k_lin.weight, attention.v_lin.weight]),
        torch.cat([attention.k_lin.bias, attention.v_lin.bias])).view(-1, 2, *heads)
    rate = attention.dropout.p if layer.training else 0.0
    if rate == 0.0 and not (torch.is_grad_enabled() and key_value.requires_grad):
        mixed = _attend(query, key_value, asking_sizes, asked_sizes)
    else:
        mixed = _Attention.apply(query, key_value, asking_sizes, asked_sizes, rate)
    hidden = layer.sa_layer_norm(attention.out_lin(mixed.flatten(1)) + asking)
    ffn = layer.ffn
    update = ffn.lin2(ffn.activation(ffn.lin1(hidden)))
    update = dropout(update, ffn.dropout.p, layer.training)
    return layer.output_layer_norm(update + hidden)


def _attend(query: torch.Tensor, key_value: torch.Tensor, asking_sizes: list[int],
            asked_sizes: list[int]) -> torch.Tensor:
    """Compute what `_Attention` does, where nothing is learned: torch's kernel is faster."""
    result = torch.empty_like(query)
    for out, q, (k, v) in zip(*_by_paper((asking_sizes, asked_sizes), result, query, key_value)):
        out.copy_(scaled_dot_product_attention(q[None], k[None], v[None])[0])
    return result


class _Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v of each paper by itself (Vaswani et al. 2017, equation 1).

    query is (asking tokens, heads, d), key_value (asked tokens, 2, heads, d); the result has
    query's shape. Written with its own backward pass because autograd's, of so many slices,
    would fill and add an array of all tokens for every one of them.
    """

    @staticmethod
    def forward(ctx, query, key_value, asking_sizes, asked_sizes, dropout_rate):
        result = torch.empty_like(query)
        ctx.papers, ctx.rate = (asking_sizes, asked_sizes), dropout_rate
        scale = query.shape[-1] ** -0.5
        saved = []
        for out, q, (k, v) in zip(*_by_paper(ctx.papers, result, query, key_value)):
            weights = kept = torch.softmax((q * scale) @ k.transpose(1, 2), dim=-1)
            saved.append(weights)
            if dropout_rate:
                kept, mask = torch.native_dropout(weights, dropout_rate, True)
                saved.append(mask)
            out.copy_(kept @ v)
        ctx.save_for_backward(query, key_value, *saved)
        return result

    @staticmethod
    def backward(ctx, grad):
        query, key_value, *saved = ctx.saved_tensors
        saved = iter(saved)
        scale = query.shape[-1] ** -0.5
        grad_query, grad_key_value = torch.empty_like(query), torch.empty_like(key_value)
        for g, q, (k, v), dq, (dk, dv) in zip(
                *_by_paper(ctx.papers, grad, query, key_value, grad_query, grad_key_value)):
            weights = kept = next(saved)
            grad_weights = g @ v.transpose(1, 2)
            if ctx.rate:
                mask = next(saved)
                kept = weights * mask / (1 - ctx.rate)
                grad_weights = grad_weights * mask / (1 - ctx.rate)
            dv.copy_(kept.transpose(1, 2) @ g)
            grad_scores = torch.ops.aten._softmax_backward_data(
                grad_weights, weights, -1, weights.dtype)
            dq.copy_((grad_scores @ k) * scale)
            dk.copy_((grad_scores.transpose(1, 2) @ q) * scale)
        return grad_query, grad_key_value, None, None, None


def _by_paper(papers: tuple[list[int], list[int]], *tensors: torch.Tensor):
    """Cut each tensor into papers, heads first: (heads, tokens, d), or (2, heads, tokens, d)."""
    asking_sizes, asked_sizes = papers
    for tensor in tensors:
        if tensor.dim() == 3:
            yield [part.transpose(0, 1) for part in tensor.split(asking_sizes)]
        else:
            yield [part.permute(1, 2, 0, 3) for part in tensor.split(asked_sizes)]
