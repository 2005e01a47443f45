# SPDX-License-Identifier: Apache-2.0
"""Text model and mmproj together in a prebuilt llama.cpp: pictures, prompts, and where its reader goes another way.

``PADDLEMIX_XLLAMACPP_PYTHON`` names an interpreter with xllamacpp, ``PADDLEMIX_LIBLLAVA`` a library of an older
llama.cpp, which has ``llava_image_embed_make_with_bytes`` (the one in llama-cpp-cffi 0.4.42 is from spring 2025).
"""

import ctypes
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlemix.checkpoint.gguf.write import convert_to_gguf
from paddlemix.checkpoint.load import load_model
from paddlemix.generation.engine import encode_images, generate_batch
from paddlemix.generation.folder import processor_for
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.layout import Layout
from paddlemix.models.vision.clip import ClipTransformer
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.text.messages import Message, first_turn_with_images
from paddlemix.text.model_template import template_for
from paddlemix.text.templates import prompt_text
from paddlemix.text.tokenizer import load_tokenizer
from tests.checkpoint.gguf_kit import KINDS, MISSING, folder_of, made
from tests.checkpoint.test_checkpoint_gguf import ANYRES

pytestmark = [pytest.mark.reference, pytest.mark.timeout(300), pytest.mark.skipif(MISSING, reason="no package gguf")]
WORKER = Path(__file__).with_name("llama_cpp_images.py")
PROMPT = "a cat USER: <image>\nwhat is shown? ASSISTANT:"
NEW = 12


def in_llama_cpp(folder: Path, place: Path, images: list[Path], chats: list[list[dict]] = ()) -> dict:
    python = os.environ.get("PADDLEMIX_XLLAMACPP_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_XLLAMACPP_PYTHON names no interpreter with xllamacpp")
    asked = [{"prompt": PROMPT, "image": str(path)} for path in images]
    (place / "inputs.json").write_text(json.dumps({"asked": asked, "chats": list(chats), "new": NEW}))
    command = [python, str(WORKER), str(folder), str(place / "inputs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def class_token_last(self: ClipTransformer, pixels: paddle.Tensor) -> paddle.Tensor:
    """``ClipTransformer.embed`` as in llama.cpp's issue 25814: the class token behind the patches.

    The positions stay in their order and the first row is still the one that is left out, so every patch has its
    neighbour's position, the first patch is lost and the class token is taken for the last one.
    """
    patches = self.conv1(pixels).reshape([0, 0, -1]).transpose([0, 2, 1])
    last = self.class_embedding.reshape([1, 1, -1]).expand([patches.shape[0], 1, patches.shape[2]])
    return self.ln_pre(paddle.concat([patches, last], axis=1) + self.positional_embedding.weight)


def answers(folder: Path, image: Path, monkeypatch) -> dict[str, list[int]]:
    """Our greedy ids; those with llama.cpp's order of the class token; and with its order of the tiles too."""
    loaded = load_model(folder)
    ids = load_tokenizer(loaded.tokenizer_folder).encode_with_images(PROMPT)
    with Image.open(image) as opened:
        done = processor_for(loaded.config)(opened.convert("RGB"))
    rows = loaded.config.vision.tokens_per_tile

    def greedy(layout: Layout) -> list[int]:
        plan = build_plan([PlanRow(ids, [layout])], tokens_per_tile=rows)
        return generate_batch(loaded.model, plan, done.pixels, Decoding(max_new_tokens=NEW, eos_ids=()))[0]

    found = {"ours": greedy(done.layout)}
    monkeypatch.setattr(ClipTransformer, "embed", class_token_last)
    found["class token last"] = greedy(done.layout)
    tiles = np.arange(done.layout.tiles * rows)
    found["tiles first too"] = greedy(Layout(done.layout.tiles, np.concatenate([tiles[rows:], tiles[:rows]])))
    monkeypatch.undo()
    return found


def pictures(place: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """Images of noise: the features of a flat one hardly depend on the order of the patches."""
    paths = []
    for number, size in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        paths.append(place / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_llava_1_5_answers_about_pictures_as_here_but_for_the_class_token(kind, tmp_path, monkeypatch):
    # Squares: another image is scaled there before it is padded, and here after it.
    images = pictures(tmp_path, [(28, 28), (28, 28), (56, 56)])
    convert_to_gguf(made(kind), tmp_path / "gguf", 32)
    theirs = in_llama_cpp(tmp_path / "gguf", tmp_path, images)["answers"]
    known = [answers(made(kind), image, monkeypatch) for image in images]
    assert all(one["ours"] != one["class token last"] for one in known)
    orders = {name for name in ("ours", "class token last") if theirs == [one[name] for one in known]}
    assert len(orders) == 1, (theirs, known)


def test_llava_1_6_has_its_tiles_in_another_order_there(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "model", "llama", image=ANYRES, has_image_newline=True)
    images = pictures(tmp_path, [(56, 56), (28, 56)])
    convert_to_gguf(folder, tmp_path / "gguf", 32)
    theirs = in_llama_cpp(tmp_path / "gguf", tmp_path, images)["answers"]
    known = [answers(folder, image, monkeypatch) for image in images]
    assert all(len({*map(tuple, one.values())}) == 3 for one in known)
    assert theirs == [one["tiles first too"] for one in known]


def test_the_servers_chat_writes_our_prompt(tmp_path):
    image = str(pictures(tmp_path, [(28, 28)])[0])
    convert_to_gguf(made("llama"), tmp_path / "gguf", 32)
    picture, text = {"type": "image", "path": image}, {"type": "text", "text": "What is shown? __> x"}
    said = [{"type": "text", "text": "A cat."}]
    chats = [[{"role": "user", "content": content}] for content in ([picture, text], [text, picture, picture], [text])]
    chats.append(chats[0] + [{"role": "assistant", "content": said}, {"role": "user", "content": [text]}])
    found = in_llama_cpp(tmp_path / "gguf", tmp_path, [], chats)["prompts"]
    template = template_for(made("llama"), "vicuna_v1")
    first = [first_turn_with_images("What is shown? __> x", count) for count in (1, 2, 0)]
    ours = [*first, [*first[0], Message("assistant", "A cat."), Message("user", "What is shown? __> x")]]
    assert found == [prompt_text(template, messages, answer_open=True) for messages in ours]


class _Embedded(ctypes.Structure):
    _fields_ = (("rows", ctypes.POINTER(ctypes.c_float)), ("count", ctypes.c_int))


def test_the_tower_gives_our_features_in_a_llama_cpp_before_its_graph_was_rewritten(tmp_path):
    library = os.environ.get("PADDLEMIX_LIBLLAVA")
    if not library:
        pytest.skip("PADDLEMIX_LIBLLAVA names no library with llava_image_embed_make_with_bytes")
    loaded = load_model(made("llama"))
    convert_to_gguf(made("llama"), tmp_path / "gguf", 32)
    known = ctypes.CDLL(library)
    known.clip_model_load.restype = ctypes.c_void_p
    make = known.llava_image_embed_make_with_bytes
    make.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    make.restype = ctypes.POINTER(_Embedded)
    tower = known.clip_model_load(str(tmp_path / "gguf" / "mmproj-model-f32.gguf").encode(), 0)
    image = pictures(tmp_path, [(28, 28)])[0]
    data = image.read_bytes()
    found = make(tower, 1, data, len(data)).contents
    theirs = np.ctypeslib.as_array(found.rows, (found.count, loaded.config.text.hidden_size))
    ours = encode_images(loaded.model, processor_for(loaded.config)(Image.open(image)).pixels).numpy()[0]
    # The patches' kernel and the table of the activation are float16 there.
    np.testing.assert_allclose(theirs, ours, atol=3e-3 * np.abs(ours).max())
