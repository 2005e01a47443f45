"""The jinja program of a template writes the prompts that we write."""

import json
import re

import pytest

from paddlemix.text.chat_template import ChatTemplate
from paddlemix.text.jinja_export import chat_jinja
from paddlemix.text.messages import Message, first_turn_with_images
from paddlemix.text.templates import TEMPLATES, prompt_text
from paddlemix.utils.errors import DataError

sandbox = pytest.importorskip("jinja2.sandbox", reason="jinja2 comes with paddlenlp")

PROMPTS = {name: template for name, template in TEMPLATES.items() if not name.endswith("_train")}
SAID = ["What is 'this'?\\n {{ x }}", 'a red "cat"\n', "and\tthat? \U0001f600", "two"]
VICUNA = {
    "system": "A chat between a curious user and an assistant. ",
    "conversation": ["USER: {{user}} ASSISTANT:", " {{bot}}</s>"],
    "query": "USER: {{query}} ASSISTANT:",
}
ROUNDS = {
    "system": "{% if system %}<<{{system}}>>\n{% else %}none. {% endif %}",
    "conversation": [
        "{% if is_first %}\n{% elif not is_last %}##{% endif %}[{{ index + 1 }}/{{length}}] {{user | trim}}\n\n",
        "{# said #}Bot: {{bot}}{% if is_training and is_last %}<end>{% else %}<more>{% endif %}",
    ],
}


def written(program: str, messages: list[dict], *, add_generation_prompt: bool) -> str:
    """As transformers runs it (utils/chat_template_utils.py)."""

    def refuse(text: str) -> None:
        raise ValueError(text)

    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(program).render(messages=messages, add_generation_prompt=add_generation_prompt)


def as_json(messages: list[Message]) -> list[dict]:
    return [{"role": message.role, "content": message.text} for message in messages]


def conversations(system: str | None):
    begin = [] if system is None else [Message("system", system)]
    roles = ("user", "assistant") * 2
    turns = [Message(role, text) for role, text in zip(roles, SAID, strict=True)]
    for count in (1, 2, 3, 4):
        yield [*begin, *turns[:count]]


def same(layout, messages: list[Message]) -> None:
    is_open = messages[-1].role == "user"
    expected = "".join(part.text for part in layout.segments(messages, answer_open=is_open))
    assert written(chat_jinja(layout), as_json(messages), add_generation_prompt=is_open) == expected


@pytest.mark.parametrize("system", [None, "", "Be brief.\n"])
@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_every_template_writes_its_prompts_and_whole_conversations(name, system):
    for messages in conversations(system):
        same(PROMPTS[name], messages)


@pytest.mark.parametrize("data", [VICUNA, ROUNDS])
@pytest.mark.parametrize("system", [None, "", "Be brief.\n"])
def test_a_chat_template_file_writes_its_prompts_and_whole_conversations(data, system):
    for messages in conversations(system):
        same(ChatTemplate(data), messages)


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", ["vicuna_v1", "llava_llama_2", "mistral_instruct", "chatml_direct", "v1_mmtag"])
def test_pictures_stand_where_a_chat_of_ours_puts_them(name, images, marks):
    template = TEMPLATES[name]
    ours = first_turn_with_images(" What? ", images, mmtag=template.mmtag, use_im_start_end=marks)
    content = [{"type": "text", "text": " What? "}, *[{"type": "image"}] * images]
    found = written(
        chat_jinja(template, use_im_start_end=marks), [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert found == prompt_text(template, ours, answer_open=True)


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("name", ["vicuna_v1", "llava_llama_3", "chatml_direct"])
def test_llama_cpps_marks_come_first_with_a_newline_wherever_they_are(name, marks):
    program = chat_jinja(TEMPLATES[name], use_im_start_end=marks, media_markers=True)
    ours = prompt_text(
        TEMPLATES[name], first_turn_with_images("a __> b? c", 2, use_im_start_end=marks), answer_open=True
    )
    for content in ("<__media_x1__><__media_x1__>a __> b? c", " a __><__media_x1__> b?<__media_x1__> c\n"):
        found = written(program, [{"role": "user", "content": content}], add_generation_prompt=True)
        assert found.replace("<__media_x1__>", "<image>") == ours
    plain = [{"role": "user", "content": " a __> b\n"}]
    assert written(program, plain, add_generation_prompt=True) == written(
        chat_jinja(TEMPLATES[name]), plain, add_generation_prompt=True
    )


def test_turns_out_of_order_are_an_error_and_the_program_is_one_text():
    program = chat_jinja(TEMPLATES["vicuna_v1"])
    assert json.loads(json.dumps(program)) == program
    for roles in (["assistant"], ["user", "user"], ["user", "system"]):
        with pytest.raises(ValueError, match="take turns"):
            written(program, [{"role": role, "content": "x"} for role in roles], add_generation_prompt=False)


def test_an_answer_inside_of_an_if_has_no_other_form():
    data = {"conversation": ["{{user}}", "{% if is_last %}{{bot}}{% endif %}"]}
    with pytest.raises(DataError, match="inside of an if"):
        chat_jinja(ChatTemplate(data))


@pytest.mark.parametrize("layout", [*PROMPTS.values(), ChatTemplate(ROUNDS)])
def test_every_set_has_one_name_as_small_readers_of_jinja_want_it(layout):
    assert not re.search(r"{%-? *set \w+\s*,", chat_jinja(layout))
