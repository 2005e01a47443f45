# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of a model: it must hold every id of its tokenizer, and it may grow by tokens of its own."""

import dataclasses
from typing import Any

import paddle
from paddle import nn

from paddlemix.models.llava import LlavaForCausalLM, allocate
from paddlemix.ops.linear import Linear
from paddlemix.settings.model import LlavaConfig
from paddlemix.utils.errors import CheckpointError


def require_vocabulary(config: LlavaConfig, tokenizer: Any, where: object) -> None:
    """CheckpointError when the tokenizer makes ids that the weights have no row for.

    More rows than tokens are fine: llava-hf pads its table to a multiple of 64.
    """
    rows, tokens = config.text.vocab_size, tokenizer.vocab_size
    if tokens > rows:
        raise CheckpointError(
            f"{where}: the tokenizer has {tokens} tokens, the weights have rows for {rows}; "
            "take the tokenizer that belongs to the weights, or add rows with grow_vocabulary"
        )


@paddle.no_grad()
def grow_vocabulary(model: LlavaForCausalLM, tokens: int) -> LlavaConfig:
    """Give embedding and head rows for ``tokens`` ids in all and return the new configuration.

    The new rows are the mean of all old ones, as the original does for its image marks: a row at random would win or
    lose every comparison. Nothing happens when there are rows enough. CheckpointError for a tied model.
    """
    config = model.config
    extra = tokens - config.text.vocab_size
    if extra <= 0:
        return config
    if config.text.tie_word_embeddings:
        raise CheckpointError("a model whose head is tied to its embeddings cannot get new tokens yet")
    embedding, head = model.llama.embed_tokens.weight, model.lm_head.weight
    width = config.text.hidden_size
    with paddle.LazyGuard():
        model.llama.embed_tokens = nn.Embedding(tokens, width)
        model.lm_head = Linear(width, tokens, bias=False)
    model.lm_head.training = model.llama.embed_tokens.training = model.training
    _extend(model.llama.embed_tokens.weight, embedding, 0, extra)
    _extend(model.lm_head.weight, head, 1, extra)
    model.config = config.with_changes(text=dataclasses.replace(config.text, vocab_size=tokens))
    return model.config


def _extend(parameter: Any, old: Any, axis: int, extra: int) -> None:
    mean = old.astype("float32").mean(axis=axis, keepdim=True).astype(old.dtype)
    allocate(parameter, paddle.concat([old, *([mean] * extra)], axis=axis))
    parameter.stop_gradient = old.stop_gradient
