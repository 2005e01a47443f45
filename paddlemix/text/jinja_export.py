# SPDX-License-Identifier: Apache-2.0
"""A conversation template as the jinja program that transformers' ``apply_chat_template`` runs.

Messages are ``{"role": ..., "content": text or list of {"type": "text" | "image", ...}}``. Images of a turn come
first, each with a newline behind it, then its text, as in a chat of ours. The begin token is not written: the tokenizer
adds it. Every ``set`` has one name: OpenVINO GenAI's reader of such programs knows no pairs there.
"""

import json
from collections.abc import Sequence

from paddlemix.text.chat_template import ChatTemplate
from paddlemix.text.messages import TAGGED_IMAGE, Message
from paddlemix.text.templates import SYSTEM_MARK, Template, prompt_text
from paddlemix.utils.constants import IMAGE_END_TOKEN, IMAGE_START_TOKEN, IMAGE_TOKEN

_MEDIA, _MEDIA_END = "<__media", "__>"
"""How the marks begin and end that llama.cpp puts into a message in place of its pictures."""

_ROLES = (
    '{%- if messages and messages[0]["role"] == "system" -%}'
    "{%- set system = words(messages[0]) -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = none -%}{%- set turns = messages -%}{%- endif -%}"
    '{%- for message in turns -%}{%- if message["role"] != ("user" if loop.index0 % 2 == 0 else "assistant") -%}'
    '{{- raise_exception("user and assistant take turns, after a system message at most") -}}'
    "{%- endif -%}{%- endfor -%}"
)
"""``system`` (none without a system message) and ``turns``."""


def chat_jinja(
    template: Template | ChatTemplate, *, use_im_start_end: bool = False, media_markers: bool = False
) -> str:
    """The program. ``use_im_start_end``: the model has marks around every image.

    ``media_markers``: for llama.cpp, which hands over a message as one text, a mark of its own in it for every image.
    The marks come first as well, with the newline behind each; a template with rounds for the images leaves them.
    """
    place = f"{IMAGE_START_TOKEN}{IMAGE_TOKEN}{IMAGE_END_TOKEN}" if use_im_start_end else IMAGE_TOKEN
    body = _of_file(template) if isinstance(template, ChatTemplate) else _of_table(template, place)
    mark = "" if template.mmtag else f"{place}\n"
    return _words(mark, media_markers=media_markers and bool(mark)) + body


def _words(mark: str, *, media_markers: bool) -> str:
    """The macro that gives the text of a message; ``mark`` stands there for every image."""
    macros, text = _around_media(mark) if media_markers else ("", '{{- message["content"] -}}')
    return (
        macros + '{%- macro words(message) -%}{%- if message["content"] is string -%}' + text + "{%- else -%}"
        '{%- for part in message["content"] if part["type"] == "image" -%}{{- ' + _quote(mark) + " -}}{%- endfor -%}"
        '{{- message["content"] | selectattr("type", "equalto", "text") | map(attribute="text") | join("") | trim -}}'
        "{%- endif -%}{%- endmacro -%}"
    )


def _around_media(mark: str) -> tuple[str, str]:
    """A macro, and what writes a text with llama.cpp's marks in it: each as in ``mark``, then the rest."""
    before, _, after = mark.partition(IMAGE_TOKEN)
    begin, end = _quote(_MEDIA), _quote(_MEDIA_END)
    rest = (
        "{%- macro behind(pieces) -%}{{- pieces[0] -}}{%- for piece in pieces[1:] -%}"
        f"{{{{- piece.split({end})[1:] | join({end}) -}}}}{{%- endfor -%}}{{%- endmacro -%}}"
    )
    text = (
        f'{{%- set pieces = message["content"].split({begin}) -%}}'
        '{%- if pieces | length == 1 -%}{{- message["content"] -}}{%- else -%}{%- for piece in pieces[1:] -%}'
        f"{_write(before + _MEDIA)}{{{{- piece.split({end})[0] -}}}}{_write(_MEDIA_END + after)}"
        "{%- endfor -%}{{- behind(pieces) | trim -}}{%- endif -%}"
    )
    return rest, text


def _of_table(template: Template, place: str) -> str:
    return "".join(
        [
            _user_macro(template),
            _answer_macro(template),
            _ROLES,
            _opening(template),
            _turns(template, place),
            "{%- if add_generation_prompt -%}" + _write(template.answer.head),
            "{%- elif turns -%}" + _write(template.closing) + "{%- endif -%}",
        ]
    )


def _user_macro(template: Template) -> str:
    before, after = template.user
    text = f"{_write(before)}{{{{- text -}}}}{_write(after)}"
    empty = _write(template.empty_user)
    if template.first_user is not None and not template.examples:
        first, behind = template.first_user
        text = f"{{%- if first -%}}{_write(first)}{{{{- text -}}}}{_write(behind)}{{%- else -%}}{text}{{%- endif -%}}"
    body = f"{{%- if text -%}}{text}{{%- else -%}}{empty}{{%- endif -%}}"
    return f"{{%- macro user(text, first) -%}}{body}{{%- endmacro -%}}"


def _answer_macro(template: Template) -> str:
    answer = template.answer
    said = f"{_write(answer.lead)}{{{{- text -}}}}{_write(answer.tail + answer.after)}"
    return f"{{%- macro answer(text) -%}}{_write(answer.head)}{{%- if text -%}}{said}{{%- endif -%}}{{%- endmacro -%}}"


def _opening(template: Template) -> str:
    before, _, after = template.opening.partition(SYSTEM_MARK)
    own = _quote(template.system)
    written = (
        f"{{%- set system = {own} if system is none else system -%}}"
        f"{{%- if system -%}}{_write(before)}{{{{- system -}}}}{_write(after)}"
        f"{{%- else -%}}{_write(template.bare_opening)}{{%- endif -%}}"
    )
    if template.first_user is not None:
        written = f"{{%- if turns -%}}{written}{{%- endif -%}}"
    return written + _write(_examples(template))


def _examples(template: Template) -> str:
    """The rounds that every prompt begins with: what they add to a prompt without a system text."""
    if not template.examples:
        return ""
    question = [Message("system", ""), Message("user", "?")]
    whole = prompt_text(template, question, answer_open=True)
    end = f"{template.user[0]}?{template.user[1]}{template.answer.head}"
    return whole.removeprefix(template.bare_opening).removesuffix(end)


def _turns(template: Template, place: str) -> str:
    user = "{{- user(words(message), loop.first) -}}"
    if template.mmtag:
        # Images are a round of their own there, answered by "Received.".
        tagged = _quote(TAGGED_IMAGE.replace(IMAGE_TOKEN, place))
        user = (
            '{%- set count = 0 if message["content"] is string else '
            'message["content"] | selectattr("type", "equalto", "image") | list | length -%}'
            f"{{%- if count -%}}{{{{- user({tagged} * count, loop.first) -}}}}"
            '{{- answer("Received.") -}}{%- endif -%}'
            "{{- user(words(message), loop.first and not count) -}}"
        )
    return (
        '{%- for message in turns -%}{%- if message["role"] == "user" -%}' + user + "{%- else -%}"
        "{{- answer(words(message)) -}}{%- endif -%}{%- endfor -%}"
    )


def _of_file(template: ChatTemplate) -> str:
    """PaddleNLP's file: its own programs, with the variables that they expect."""
    named = "{%- set system = words(messages[0]) -%}" if template.takes_system else "{{- words(messages[0]) -}}"
    own = _program(template.program("system"))
    begin = (
        f'{{%- if system is none -%}}{{%- set system = "" -%}}{own}'
        f"{{%- else -%}}{named}{own if template.takes_system else ''}{{%- endif -%}}"
    )
    values = (
        "{%- set index = loop.index0 // 2 -%}{%- set length = (turns | length + 1) // 2 -%}"
        "{%- set is_first = index == 0 -%}{%- set is_last = index == length - 1 -%}{%- set query = words(message) -%}"
        "{%- set is_training = not add_generation_prompt -%}{%- set user = query -%}"
        '{%- set bot = words(turns[loop.index]) if loop.index < turns | length else "" -%}'
    )
    asked = _program(template.program("user"))
    head, answer = (_program(part) for part in template.answer_program())
    # Spaces at the end of the head belong to the answer, so that the prompt is a prefix of the sample.
    opened = f'{{%- set text -%}}{asked}{head}{{%- endset -%}}{{{{- text.rstrip(" ") -}}}}'
    closed = f"{asked}{head}{answer}"
    rounds = (
        '{%- for message in turns -%}{%- if message["role"] == "user" -%}'
        f"{values}{{%- if loop.last -%}}{opened}{{%- else -%}}{closed}{{%- endif -%}}{{%- endif -%}}{{%- endfor -%}}"
    )
    return _ROLES + begin + rounds


def _program(parts: Sequence[tuple[str, str]]) -> str:
    out = []
    for kind, text in parts:
        if kind == "text":
            out.append(_write(text))
        elif kind == "out":
            out.append(f"{{{{- {text} -}}}}")
        else:
            out.append(f"{{%- {kind} {text} -%}}" if text else f"{{%- {kind} -%}}")
    return "".join(out)


def _write(text: str) -> str:
    return f"{{{{- {_quote(text)} -}}}}" if text else ""


def _quote(text: str) -> str:
    """A literal of jinja, which reads the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)
