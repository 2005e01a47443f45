# SPDX-License-Identifier: Apache-2.0
"""``Decoder``: everything that the library has to know about a family of language models, but its layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from paddlemix.settings.key_rows import KeyRow

Fact: TypeAlias = int | float | str | bool | None


@dataclass(frozen=True)
class Decoder:
    """A family of language models, by the ``model_type`` of transformers."""

    kind: str
    """``TextConfig.model_type``, and ``model_type`` of its config.json."""
    hf_class: str
    """Its class in transformers."""
    original_types: tuple[str, ...]
    """``model_type`` of LLaVA models on it, in LLaVA's own layout; the first is written."""
    original_class: str
    """Class of those models."""
    defaults: Mapping[str, Fact]
    """Fields of ``TextConfig`` that its config.json has, with the defaults of its configuration class. None: no
    default, a whole number when it is there. A field that is not here is not read."""
    rows: tuple[KeyRow, ...]
    """Tensor names there (below ``model.``) and here (below ``llama.``)."""
    template: str
    """Conversation template of a LLaVA model on it that names none."""

    model: str = "paddlemix.models.llm.llama:LlamaModel"
    """``module:Class`` of its layers, imported when a model is built."""
    layers: str = "layers."
    """Our name of the stack of layers, with a dot behind; a number follows it."""
    linears: str = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    """Regular expression of the linear layers of one layer: those that LoRA trains by default."""
    biased: tuple[str, ...] = ()
    """Projections of the attention (``q_proj`` ...) that always have a bias."""
    biased_by_key: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Projections that have one when config.json says ``attention_bias``."""
    expected: Mapping[str, tuple[Fact, str]] = field(default_factory=dict)
    """Keys of which one value only is supported: the value, and why."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Keys that are read and not used: reason by name."""
    written_null: tuple[str, ...] = ()
    """Keys that are written as null where they are unset, because the default of the family is a number."""
    templates_by_vocabulary: tuple[tuple[range, str], ...] = ()
    """Templates of models that are known by the size of their vocabulary."""
    tokenizer: str = "slow"
    """Which of transformers' tokenizers LLaVA loads for it (``text.tokenizer``), where its folder does not say."""
    tokenizers_by_type: Mapping[str, str] = field(default_factory=dict)
    """The same for some of ``original_types``."""
    class_decides: bool = False
    """LLaVA writes its ``original_types`` for models on other decoders, too; ``architectures`` tells them apart."""
    gguf: str | None = None
    """Its architecture in llama.cpp's files (``checkpoint.gguf``); None: it has no form there."""
    gguf_pairs: bool = False
    """Whether that architecture has the two rows of q and k that are rotated together side by side."""
    decays_norms: bool = False
    """Whether the original lets the weights of the norms decay in training."""

    def has_bias(self, projection: str, attention_bias: bool) -> bool:
        """Whether a projection of the attention has a bias; ``attention_bias`` is what config.json says."""
        return projection in self.biased or (attention_bias and projection in self.biased_by_key)

    def tokenizer_for(self, model_type: str) -> str:
        """The tokenizer of a model whose config.json says ``model_type``."""
        return self.tokenizers_by_type.get(model_type, self.tokenizer)

    def template_for(self, vocabulary: int) -> str:
        """The template of a model with ``vocabulary`` tokens."""
        return next((name for sizes, name in self.templates_by_vocabulary if vocabulary in sizes), self.template)
