# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of a model may grow by tokens of its own."""

import dataclasses

import paddle
from paddle import Tensor, nn

from paddlemix.models.llava import LlavaForCausalLM, allocate
from paddlemix.ops.linear import Linear
from paddlemix.ops.parallel import cut, mark, whole
from paddlemix.settings.model import LlavaConfig


@paddle.no_grad()
def grow_vocabulary(model: LlavaForCausalLM, tokens: int) -> LlavaConfig:
    """Give embedding and head rows for ``tokens`` ids in all and return the new configuration.

    The new rows are the mean of all old ones, as the original does for its image marks: a row at random would win or
    lose every comparison. Nothing happens when there are rows enough. In tensor parallel every device calls it. A head
    that is tied to the embeddings grows with them.
    """
    config = model.config
    extra = tokens - config.text.vocab_size
    if extra <= 0:
        return config
    embedding = model.llama.embed_tokens.weight
    with paddle.LazyGuard():
        model.llama.embed_tokens = nn.Embedding(tokens, model.llama.width.count)
        mark(model.llama.embed_tokens.weight, 1, model.llama.width)
    model.llama.embed_tokens.training = model.training
    _extend(model.llama.embed_tokens.weight, embedding, 0, extra)
    if not config.text.tie_word_embeddings:
        head = model.lm_head.weight
        with paddle.LazyGuard():
            model.vocabulary = model.parallel.share(tokens)
            model.lm_head = Linear(config.text.hidden_size, model.vocabulary, bias=False)
        model.lm_head.training = model.training
        _extend(model.lm_head.weight, head, 1, extra)
    model.config = config.with_changes(text=dataclasses.replace(config.text, vocab_size=tokens))
    return model.config


def _extend(parameter: Tensor, old: Tensor, axis: int, extra: int) -> None:
    """Through the whole values, because other places of a divided head lie on this device when there are more."""
    values = whole(old)
    mean = values.astype("float32").mean(axis=axis, keepdim=True).astype(old.dtype)
    grown = paddle.concat([values, *([mean] * extra)], axis=axis)
    allocate(parameter, cut(parameter, grown).contiguous())
    parameter.stop_gradient = old.stop_gradient
