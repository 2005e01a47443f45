# SPDX-License-Identifier: Apache-2.0
"""The table of conversation templates: strings as data, and the one algorithm that writes messages with them.

The strings are those of LLaVA (llava/conversation.py and train.py), of PaddleMIX's additions to it, and of
InternVL-Chat and ShareGPT4V.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from paddlemix.text.messages import Message, Segment, check_turns
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.registry import nearest

SYSTEM_MARK = "{system}"


@dataclass(frozen=True)
class Answer:
    """Around an answer: ``head`` ends the prompt; ``lead``, the answer and ``tail`` are learnt; ``after`` is not.

    The space before an answer is its ``lead`` and not the end of the head, because sentencepiece joins it to the
    first word: so the ids of the prompt stay a prefix of the ids of the sample.
    """

    head: str
    lead: str
    tail: str
    after: str = ""


TemplateField: TypeAlias = str | bool | Answer | tuple[str, ...] | tuple[tuple[str, str], ...] | None
"""Value of a field of ``Template``."""


@dataclass(frozen=True)
class Template:
    """One conversation format.

    ``opening`` stands before the first turn, with ``{system}`` in it (``bare_opening`` when the system text is empty);
    ``user`` are the strings around a user text, ``first_user`` those around the first one when they differ, and
    ``empty_user`` stands for a user turn without text. ``examples`` are rounds that every prompt begins with.
    ``images_only`` keeps of a user text its image places alone, and no system text.
    ``train_as`` names the template that the original trains with when it is not this one (see ``for_training``).
    """

    name: str
    system: str
    opening: str
    user: tuple[str, str]
    answer: Answer
    stops: tuple[str, ...]
    bare_opening: str = ""
    first_user: tuple[str, str] | None = None
    empty_user: str = ""
    closing: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    mmtag: bool = False
    images_only: bool = False
    assistant_first: bool = False
    train_as: str | None = None

    def segments(self, messages: Sequence[Message], *, answer_open: bool) -> list[Segment]:
        """Messages as segments of text. DataError when the turns are out of order or the first user text is missing."""
        system, turns = check_turns(messages, assistant_first=self.assistant_first)
        if answer_open and (not turns or turns[-1].role != "user"):
            raise DataError(f'template "{self.name}": a prompt must end with a user message')
        found = self._opening(system, bool(turns))
        for user, assistant in self.examples:
            found += self._user(user, first=False, quoted=False)
            found += self._assistant(assistant, quoted=False, learns=False)
        for i, turn in enumerate(turns):
            if turn.role == "user":
                found += self._user(turn.text, first=i == 0 and not self.examples, quoted=True)
            else:
                found += self._assistant(turn.text, quoted=True, learns=turn.learns)
        found.append(Segment(self.answer.head if answer_open else self.closing if turns else ""))
        return [part for part in found if part.text]

    def _opening(self, system: str | None, turns: bool) -> list[Segment]:
        if self.images_only or (self.first_user is not None and not turns):
            return []
        text = self.system if system is None else system
        before, _, after = (self.opening if text else self.bare_opening).partition(SYSTEM_MARK)
        return [Segment(before), Segment(text, quoted=system is not None), Segment(after)]

    def _user(self, text: str, *, first: bool, quoted: bool) -> list[Segment]:
        if self.images_only:
            text = IMAGE_TOKEN * text.count(IMAGE_TOKEN)
        if not text:
            if first and self.first_user is not None:
                raise DataError(
                    f'template "{self.name}": the first user message is empty; it must hold a text or an <image>'
                )
            return [Segment(self.empty_user)]
        before, after = self.first_user if first and self.first_user is not None else self.user
        return [Segment(before), Segment(text, quoted=quoted), Segment(after)]

    def _assistant(self, text: str, *, quoted: bool, learns: bool) -> list[Segment]:
        answer = self.answer
        if not text:
            return [Segment(answer.head)]
        said = [Segment(answer.lead, learns), Segment(text, learns, quoted), Segment(answer.tail, learns)]
        return [Segment(answer.head), *said, Segment(answer.after)]


def prompt_text(template: Template, messages: Sequence[Message], *, answer_open: bool) -> str:
    """The conversation as one string, as LLaVA's ``get_prompt`` gives it."""
    return "".join(part.text for part in template.segments(messages, answer_open=answer_open))


def get(name: str, *, training: bool = False) -> Template:
    """Template of a name; ``training`` gives the one that the original trains with under this name.

    ConfigError names the nearest known name.
    """
    if name not in TEMPLATES:
        hint = nearest(name, list(TEMPLATES))
        raise ConfigError(f'unknown template "{name}"{hint} (known: {", ".join(sorted(TEMPLATES))})')
    found = TEMPLATES[name]
    return for_training(found) if training else found


def for_training(template: Template) -> Template:
    """The layout that the original's training writes for this template.

    It is the template itself, but for two old formats: "v0" is trained with "### Human: ...\\n" and prompted with
    "###Human: ...###"; "plain" is trained with the image and its caption alone.
    """
    return TEMPLATES[template.train_as] if template.train_as else template


def _colon(name: str, system: str, roles: tuple[str, str], seps: tuple[str, str], **more: TemplateField) -> Template:
    """``SYSTEM sep USER: text sep ASSISTANT: text sep`` (LLaVA's SINGLE and TWO styles)."""
    user, assistant = roles
    return Template(
        name,
        system,
        opening=SYSTEM_MARK + seps[0],
        bare_opening=seps[0],
        user=(f"{user}: ", seps[0]),
        empty_user=f"{user}:",
        answer=Answer(f"{assistant}:", " ", seps[1]),
        stops=(seps[1],),
        **more,
    )


def _human(name: str, system: str, **more: TemplateField) -> Template:
    return _colon(name, system, ("Human", "Assistant"), ("###", "###"), **more)


def _vicuna(name: str, system: str, **more: TemplateField) -> Template:
    return _colon(name, system, ("USER", "ASSISTANT"), (" ", "</s>"), **more)


def _tagged(name: str, system: str, roles: tuple[str, str], end: str, newline: str = "") -> Template:
    """``<|role|>\\ntext<end>`` (MPT and CHATML styles); ``roles`` hold their own newline."""
    tag = roles[0].replace("user", "system")
    return Template(
        name,
        system,
        opening=f"{tag}{SYSTEM_MARK}{end}{newline}",
        user=(roles[0], end + newline),
        empty_user=roles[0],
        answer=Answer(roles[1], "", end, newline),
        stops=(end,),
    )


def _chatml(name: str, system: str, newline: str = "") -> Template:
    return _tagged(name, system, ("<|im_start|>user\n", "<|im_start|>assistant\n"), "<|im_end|>", newline)


def _llama_2(name: str, system: str, begin: str = "<s>", **more: TemplateField) -> Template:
    """``[INST] <<SYS>> ... text [/INST] text </s>``; the first round has no ``<s>``: the bos stands there."""
    return Template(
        name,
        system,
        opening=f"[INST] <<SYS>>\n{SYSTEM_MARK}\n<</SYS>>\n\n",
        bare_opening="[INST] ",
        first_user=("", " [/INST]"),
        user=(f"{begin}[INST] ", " [/INST]"),
        answer=Answer("", " ", " </s>"),
        stops=("</s>",),
        **more,
    )


def _llama_3(name: str, system: str) -> Template:
    """Llama-3's headers; the text begins with the bos, as in LLaVA-NeXT (apply_chat_template writes it)."""

    def head(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    begin, end = "<|begin_of_text|>", "<|eot_id|>"
    return Template(
        name,
        system,
        opening=f"{begin}{head('system')}{SYSTEM_MARK}{end}",
        bare_opening=begin,
        user=(head("user"), end),
        empty_user=head("user") + end,
        answer=Answer(head("assistant"), "", end),
        stops=(end,),
    )


def _trained_v0(name: str, system: str, **more: TemplateField) -> Template:
    """What train.py writes for "v0" data. The end mark of an answer is the ``###`` that begins the next turn."""
    return Template(
        name,
        system,
        opening=f"{SYSTEM_MARK}\n\n###",
        bare_opening="\n\n###",
        user=(" Human: ", "\n###"),
        empty_user=" Human: \n###",
        answer=Answer(" Assistant:", " ", "\n###"),
        closing=" ",
        stops=("###",),
        assistant_first=True,
        **more,
    )


def _plain(name: str, **more: TemplateField) -> Template:
    """Text and newline, without roles."""
    return Template(name, "", opening="", user=("", "\n"), answer=Answer("", "", "\n"), stops=("\n",), **more)


_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_USER = _HUMAN.replace("human", "user")
_TAG_FORMAT = "The visual content will be provided with the following format: <Image>visual content</Image>."
_SEES = (
    "able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_MMTAG = (
    f"A chat between a curious user and an artificial intelligence assistant. The assistant is {_SEES}{_TAG_FORMAT}"
)
_SIMPLE = "Answer the questions about the visual content that the user provides."
_LLAVA_LLAMA_2 = f"You are a helpful language and vision assistant. You are {_SEES}"
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_ORCA = (
    "You are MistralOrca, a large language model trained by Alignment Lab AI. "
    "Write out your reasoning step-by-step to be sure you get the right answers!"
)
_MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
_SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_EXAMPLE = (
    "What are the key differences between renewable and non-renewable energy sources?",
    "Renewable energy sources are those that can be replenished naturally in a relatively short amount of time, such "
    "as solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other hand, are finite and "
    "will eventually be depleted, such as coal, oil, and natural gas. Here are some key differences between renewable "
    "and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy sources are "
    "finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact than non-renewable "
    "sources, which can lead to air and water pollution, greenhouse gas emissions, and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have lower "
    "operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote locations than "
    "non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different situations and "
    "needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while non-renewable sources "
    "are not, and their depletion can lead to economic and social instability.\n",
)

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        _human("default", _HUMAN, examples=(_EXAMPLE,), train_as="v0_train"),
        _human("v0", _HUMAN, examples=(_EXAMPLE,), train_as="v0_train"),
        _human("llava_v0", _HUMAN, train_as="v0_train"),
        _human("share4v_v0", _HUMAN, train_as="v0_train"),
        _human("v0_mmtag", _MMTAG, mmtag=True, train_as="v0_mmtag_train"),
        _human("llava_v0_mmtag", _MMTAG, mmtag=True, train_as="v0_mmtag_train"),
        _trained_v0("v0_train", _HUMAN),
        _trained_v0("v0_mmtag_train", _MMTAG, mmtag=True),
        _vicuna("v1", _USER),
        _vicuna("vicuna_v1", _USER),
        _vicuna("llava_v1", _HUMAN),
        _vicuna("share4v_v1", _HUMAN),  # MV-LLaVA's batch tools ask with it, although the model was trained with v1
        _vicuna("v1_mmtag", _MMTAG, mmtag=True),
        _vicuna("llava_v1_mmtag", _MMTAG, mmtag=True),
        _llama_2("llama_2", _LLAMA_2),
        _llama_2("llava_llama_2", _LLAVA_LLAMA_2),
        _llama_2("share4v_llama_2", _LLAVA_LLAMA_2),
        _llama_2("llava_llama_2_simple", _SIMPLE),
        _llama_2("llava_llama_2_mmtag", _SIMPLE + _TAG_FORMAT, mmtag=True),
        _colon("internvl_zh", "", ("<human>", "<bot>"), (" ", "</s>")),
        _llama_2("mistral_instruct", "", begin=""),
        _llama_2("llava_mistral_instruct", "", begin=""),
        _chatml("mpt", _MPT),
        _chatml("chatml_direct", "Answer the questions."),
        _chatml("Hermes-2", "Answer the questions."),  # InternVL-Chat's name for it
        _chatml("mistral_direct", "Answer the questions."),
        _chatml("mistral_orca", _ORCA),
        _tagged("mistral_zephyr", "You are a helpful AI assistant.", ("<|user|>\n", "<|assistant|>\n"), "</s>"),
        _chatml("qwen_1_5", "You are a helpful assistant.", newline="\n"),
        _chatml("qwen_2", "You are a helpful assistant.", newline="\n"),
        _chatml("smollm2", _SMOLLM, newline="\n"),
        _llama_3("llama_3", ""),
        _llama_3("llava_llama_3", _LLAVA_LLAMA_2),
        Template(
            "gemma_instruct",
            "",
            opening=SYSTEM_MARK,
            user=("<start_of_turn>user\n", "<end_of_turn>\n"),
            empty_user="<start_of_turn>user\n",
            answer=Answer("<start_of_turn>model\n", "", "<end_of_turn>", "\n"),
            stops=("<end_of_turn>",),
        ),
        _plain("plain", train_as="plain_train"),
        _plain("v0_plain", train_as="plain_train"),
        Template("plain_train", "", "", ("", ""), Answer("", "", "\n"), ("\n",), images_only=True),
    )
}
"""Every template by name. A name that ends in ``_train`` is the training layout of another one."""
