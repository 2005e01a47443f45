# SPDX-License-Identifier: Apache-2.0
"""Graphs whose steps are operators compiled here: the answers, who runs them, and what serves in their place."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint.save import save_model
from paddlemix.export import static_model
from paddlemix.export.opening import open_static
from paddlemix.export.write import export_model
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.sampling import Decoding
from paddlemix.ops import few_rows, step_operator
from paddlemix.ops.attention.contract import Mask
from paddlemix.text.tokenizer import load_tokenizer
from tests.export.static_kit import CLOSE, DECODINGS, Twins, prompts, talk
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer_folder

FORMS = {
    "llama": {"num_key_value_heads": 8},
    "biases, shared heads, tied": {
        "num_key_value_heads": 2, "attention_bias": True, "head_dim": 80, "tie_word_embeddings": True,
    },
}  # fmt: skip
NO_COMPILER = "no C++ compiler (c++, g++ or clang++) is on the PATH"


@pytest.fixture(scope="module", params=FORMS, ids=str)
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """A model of width 512, from which on steps are operators."""
    reason = step_operator.why_not()
    if reason:
        pytest.skip(reason)
    home, config = tmp_path_factory.mktemp("wide"), tiny_config()
    sizes = {"hidden_size": 512, "intermediate_size": 768, "num_attention_heads": 8, **FORMS[request.param]}
    config = config.with_changes(text=replace(config.text, **sizes))
    model = tiny_model(config=config)
    for name, parameter in model.named_parameters():  # biases begin as zeros, norms as ones
        if parameter.ndim == 1:
            given = np.random.default_rng(len(name)).uniform(-0.3, 0.3, parameter.shape) + ("norm" in name)
            parameter.set_value(given.astype(np.float32))
    folder = save_model(home / "model", model, config, load_tokenizer(tiny_tokenizer_folder(home / "tokenizer")))
    export_model(folder, home / "out", device="cpu")
    static = open_static(home / "out", home / "out", device="cpu")
    return Twins(folder, home / "out", Predictor.load(folder, device="cpu"), static)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that are opened."""
    found: list[str] = []
    create = static_model._predictor

    def predictor(program: Path, prefix: Path, device: str) -> Any:
        found.append(program.name)
        return create(program, prefix, device)

    monkeypatch.setattr(static_model, "_predictor", predictor)
    return found


@pytest.fixture
def opened_plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens an export as a machine without a compiler does."""

    def opened(export: Path) -> Predictor:
        with monkeypatch.context() as patch:
            static_model._tell.cache_clear()
            patch.setattr(step_operator, "why_not", lambda: NO_COMPILER)
            return open_static(export, export, device="cpu")

    return opened


@pytest.mark.parametrize("name", DECODINGS)
def test_a_conversation_is_that_of_the_dynamic_model(wide: Twins, name: str) -> None:
    assert talk(wide.static, DECODINGS[name]) == talk(wide.dynamic, DECODINGS[name])


def test_steps_are_operators_and_paddles_own_where_there_is_no_compiler(
    wide: Twins, taken: list[str], opened_plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    here = open_static(wide.export, wide.export, device="cpu")
    with caplog.at_level("INFO"):
        plain = opened_plain(wide.export)

    assert taken == ["clip.json", "llama_kernels.json", "clip.json", "llama.json"]
    told = [one.message for one in caplog.records if "by paddle's operators" in one.message]
    assert told == [f"graphs: by paddle's operators, which take longer ({NO_COMPILER})"], "one line for both"
    decoding = Decoding(max_new_tokens=12, logprobs=1)
    ids, scores = [], []
    for one in (here, plain):
        answers = one.answer(prompts(one), decoding, batch_size=2)
        ids.append([answer.ids for answer in answers])
        scores.append([token.logprob for answer in answers for token in answer.logprobs])
    assert ids[0] == ids[1]
    assert scores[0] != scores[1], "otherwise no operator was at work"
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, few_rows.MOST, few_rows.MOST + 1])
def test_steps_of_padded_rows_are_close_to_the_dynamic_ones_and_leave_the_same_cache(wide: Twins, rows: int) -> None:
    starts = paddle.to_tensor([0, 9, 4, 9, 1, 2, 3, 5, 6][:rows])  # 9: at the first step a row sees itself alone
    held, found = [], []
    for model in (wide.static.model, wide.dynamic.model):
        paddle.seed(1)
        cache, steps = model.new_cache(rows), []
        for first, last in [(0, 9), (9, 10), (10, 11)]:
            ids = paddle.randint(3, 400, [rows, last - first])
            source = paddle.arange(rows * (last - first)).reshape([rows, -1])
            places = paddle.arange(first, last).expand([rows, -1]).contiguous()
            mask = Mask(causal=True, key_starts=starts, offset=cache.offset)
            with paddle.no_grad():
                embeds = model.embed(ids, source, None)
                steps.append(model.score_next(embeds, places, mask, cache).numpy())
        found.append(np.stack(steps))
        held.append([half[:, :, :11].numpy() for layer in range(2) for half in cache.held(layer)])
    assert np.abs(found[0] - found[1]).max() <= CLOSE * np.abs(found[1]).max()
    for one, other in zip(*held, strict=True):
        assert np.abs(one - other).max() <= CLOSE * np.abs(other).max()


def test_a_step_on_keys_that_another_row_lent_leaves_them_as_they_are(wide: Twins) -> None:
    model = wide.static.model
    ids, places = paddle.to_tensor([[5, 9, 17, 30]]), paddle.arange(4).unsqueeze(0)

    def step(cache: Any, first: int, last: int) -> np.ndarray:
        embeds = model.embed(ids[:, first:last], paddle.arange(last - first).unsqueeze(0), None)
        mask = Mask(causal=True, offset=cache.offset)
        return model.score_next(embeds, places[:, first:last], mask, cache).numpy()

    with paddle.no_grad():
        lender, borrower = model.new_cache(1), model.new_cache(1)
        step(lender, 0, 3)
        lent = lender.lend()
        before = [one.numpy().copy() for side in lent for one in side]
        borrower.borrow(*lent, 3)
        scores = [step(cache, 3, 4) for cache in (borrower, lender)]
    assert (scores[0] == scores[1]).all()
    assert all((one.numpy() == other).all() for one, other in zip([*lent[0], *lent[1]], before, strict=True))
    for layer in range(2):
        for one, other in zip(borrower.held(layer), lender.held(layer), strict=True):
            assert (one.numpy()[:, :, :4] == other.numpy()[:, :, :4]).all()
            assert one.numpy()[:, :, 3].any()


def test_both_graphs_read_the_same_weights(wide: Twins) -> None:
    folder = wide.export / "encode_text"
    assert sorted(one.name for one in folder.glob("*.pdiparams")) == ["llama.pdiparams"]
    written = (folder / "llama_kernels.json").read_text()
    for name in ("step", "product", "attend", "turn", "rms_norm", "swiglu"):
        assert f'paddlemix_{name}"' in written or (
            name == "product" and wide.static.model.config.text.tie_word_embeddings
        )
    assert "paddlemix_" not in (folder / "llama.json").read_text()


def test_a_damaged_graph_of_steps_is_named(wide: Twins, tmp_path: Path) -> None:
    import shutil

    from paddlemix.utils.errors import CheckpointError

    copy = shutil.copytree(wide.export / "encode_text", tmp_path / "encode_text")
    (copy / "llama_kernels.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"llama_kernels.json: 2 bytes"):
        open_static(copy, device="cpu")


def test_a_small_model_has_one_graph(twins: Twins) -> None:
    assert not (twins.export / "encode_text" / "llama_kernels.json").exists()


def test_another_device_takes_the_graph_of_paddles_operators(
    wide: Twins, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_model, "_predictor", lambda program, prefix, device: taken.append(program.name))
    static_model._opened(wide.export / "encode_text" / "llama", "gpu:0")
    assert taken == ["llama.json"]


def test_a_graph_with_operators_that_are_not_there_gives_way(
    wide: Twins, tmp_path: Path, taken: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("llama.json", "llama.pdiparams"):
        (tmp_path / name).symlink_to(wide.export / "encode_text" / name)
    text = (wide.export / "encode_text" / "llama_kernels.json").read_text()
    (tmp_path / "llama_kernels.json").write_text(text.replace("paddlemix_step", "paddlemix_step_of_1999"))
    with caplog.at_level("INFO"):
        static_model._opened(tmp_path / "llama", "cpu")
    assert taken == ["llama_kernels.json", "llama.json"]
    told = (
        "llama: by paddle's operators, which take longer (export the model again: llama_kernels.json does not open here"
    )
    assert told in caplog.text


def test_what_the_operators_cannot_be_built_with_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reason = step_operator.why_not.__wrapped__

    def given(text: str) -> None:
        """Another file each time: what was found of one is kept."""
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.cc"
        path.write_text(text)
        monkeypatch.setattr(step_operator, "SOURCE", path)

    monkeypatch.setenv("PADDLEMIX_CPU_TUNING", "0")
    assert reason() == "PADDLEMIX_CPU_TUNING=0"
    monkeypatch.delenv("PADDLEMIX_CPU_TUNING")
    given('extern "C" void missing(); extern "C" void paddlemix_use() { missing(); }\n')
    assert "undefined symbol: missing" in reason()
    given("int nothing;\n")
    assert "paddlemix_use" in reason()
    given("int here(\n")
    assert "failed" in reason()
    given("int there(\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason() == NO_COMPILER


def test_a_program_that_opens_a_graph_sees_no_lines_of_paddles_own_log(wide: Twins) -> None:
    program = (
        "import sys; from paddlemix.export.opening import open_static\n"
        "from paddlemix.generation.session import ChatSession\n"
        "ChatSession(open_static(sys.argv[1], device='cpu')).answer('why?')"
    )
    done = subprocess.run([sys.executable, "-c", program, wide.export], capture_output=True, text=True, check=True)
    assert re.findall(r"^[IWEF]\d{4} .*", done.stderr, re.MULTILINE) == []


def test_a_chat_without_a_compiler_says_so_in_one_line(wide: Twins, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    command = Path(__file__).resolve().parents[2] / "deploy" / "llava" / "run_static_predict.py"
    graphs = f"--first_model_path={wide.export}/encode_image", f"--second_model_path={wide.export}/encode_text"
    done = subprocess.run(
        [sys.executable, command, *graphs, "--query=why?", "--max_new_tokens=2"],
        env={**os.environ, "PATH": str(tmp_path), "PPMIX_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = re.findall("^.*take longer.*$", done.stderr, re.MULTILINE)
    assert len(lines) == 1
    assert lines[0].startswith("graphs: by paddle's operators, which take longer (no C compiler")
