# SPDX-License-Identifier: Apache-2.0
"""Weights of few bits: what rounding keeps, and kernels against numpy on shapes that fit no vector."""

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.nn import quant

from paddlemix.ops.linear import Fused, Linear
from paddlemix.ops.low_bits import build, form, weights
from paddlemix.ops.low_bits.weights import FEW_ROWS, Compiled, OnCard, Plain, hold, why_not
from paddlemix.ops.npu import library
from paddlemix.ops.runtime import Choice, Runtime
from paddlemix.utils.errors import BackendError

RNG = np.random.default_rng(0)
SHAPES = ((1, 1), (7, 33), (67, 96), (130, 1000), (5, 31), (64, 2112))
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
KERNELS = [pytest.param(Compiled, marks=needs_compiler), Plain]


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(("bits", "share"), [(16, 2**-8), (8, 1.01 / 254), (4, 0.25)])
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_keeps_each_value_within_its_step(bits: int, share: float, shape: tuple[int, int]) -> None:
    values = drawn(*shape) * np.exp(drawn(shape[0], 1) * 4)  # rows of very different sizes
    held = form.packed(values, shape, bits)
    assert held.nbytes == form.nbytes_of(shape, bits)
    back = held.rows(0, shape[0])
    assert back.shape == shape
    for first in range(0, shape[1], form.GROUP):
        group = slice(first, first + form.GROUP)
        top = np.abs(values[:, group]).max(-1, keepdims=True)
        assert (np.abs(back - values)[:, group] <= share * top).all()


def test_a_group_of_zeros_stays_zero_and_what_is_not_finite_is_refused() -> None:
    for bits in form.BITS:
        assert not form.packed(np.zeros((3, 40), np.float32), (3, 40), bits).rows(0, 3).any()
        for wrong in (np.nan, np.inf):
            with pytest.raises(ValueError, match="NaN or infinity"):
                form.packed(np.full((3, 40), wrong, np.float32), (3, 40), bits)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", form.BITS)
def test_products_equal_those_of_the_widened_weights(kernel: type, bits: int) -> None:
    for number, (out, width) in enumerate(SHAPES):
        held = form.packed(drawn(out, width), (out, width), bits)
        bias = drawn(out) if number % 2 else None
        for rows in (1, 2, 3, 4, 6, 9, FEW_ROWS, FEW_ROWS + 3):
            x = drawn(rows, width)
            wanted = x.astype(np.float64) @ held.rows(0, out).astype(np.float64).T + (0 if bias is None else bias)
            given = None if bias is None else paddle.to_tensor(bias)
            found = kernel([held]).product(paddle.to_tensor(x), given).numpy()
            limit = 1e-5 * np.abs(x) @ np.abs(held.rows(0, out)).T + 1e-6
            assert (np.abs(found - wanted) <= limit).all(), (out, width, rows)


@pytest.mark.parametrize("kernel", KERNELS)
def test_many_rows_are_multiplied_portion_by_portion(kernel: type, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [form.packed(drawn(out, 40), (out, 40), bits) for out, bits in ((50, 4), (7, 8))]
    x, bias = drawn(FEW_ROWS + 3, 40), drawn(57)
    wanted = x @ np.concatenate([part.rows(0, part.shape[0]) for part in parts]).T
    monkeypatch.setattr(weights, "_PORTION", 40 * 8)
    for added in (None, bias):
        given = None if added is None else paddle.to_tensor(added)
        found = kernel(parts).product(paddle.to_tensor(x).reshape([1, -1, 40]), given).numpy()
        np.testing.assert_allclose(found[0], wanted if added is None else wanted + bias, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_many_rows_need_no_memory_beyond_the_result_and_a_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    held, x = Compiled([form.packed(drawn(1024, 64), (1024, 64), 8)]), paddle.zeros([512, 64])
    monkeypatch.setattr(weights, "_PORTION", 64 * 64)
    core = paddle.base.core
    before = core.host_memory_stat_current_value("Allocated", 0)
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    found = held.product(x, paddle.ones([1024]))
    taken = core.host_memory_stat_peak_value("Allocated", 0) - before
    assert taken <= 1.2 * 4 * found.size


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_of_another_width_are_refused(kernel: type) -> None:
    held = kernel([form.packed(drawn(6, 40), (6, 40), 8)])
    for width in (20, 39, 80):
        with pytest.raises(ValueError, match=f"rows of {width} values for a weight of 40 inputs"):
            held.product(paddle.zeros([2, width]))


@needs_compiler
@pytest.mark.parametrize("bits", form.BITS)
def test_a_row_has_the_same_product_alone_among_others_and_by_several_threads(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Compiled([form.packed(drawn(203, 320), (203, 320), bits)])
    x = paddle.to_tensor(drawn(11, 320))
    together = held.product(x).numpy()
    for row in range(11):
        assert held.product(x[row : row + 1]).numpy().tobytes() == together[row].tobytes()
    monkeypatch.setattr(held, "_team", lambda: 3)
    assert held.product(x).numpy().tobytes() == together.tobytes()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", form.BITS)
def test_a_table_gives_the_rows_that_ids_name(kernel: type, bits: int) -> None:
    held = form.packed(drawn(9, 40), (9, 40), bits)
    ids = np.array([[8, 0, 3], [3, 3, 5]])
    table = weights.Table(kernel([held]))
    np.testing.assert_array_equal(table(paddle.to_tensor(ids)).numpy(), held.rows(0, 9)[ids])
    for wrong in (9, -1):
        with pytest.raises(ValueError, match=f"id {wrong}: the table has rows 0 to 8"):
            table(paddle.to_tensor([[0, wrong]]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_layers_of_one_input_are_one_product_without_a_copy_of_their_codes(kernel: type) -> None:
    layers, x = [], paddle.to_tensor(drawn(2, 5, 40))
    for out in (6, 3):
        layers.append(Linear(40, out))
        layers[-1].hold(kernel([form.packed(drawn(out, 40), (out, 40), 8 if out == 3 else 4)]))
        layers[-1].bias.set_value(drawn(out))
    assert Fused.can(layers)
    fused = Fused(layers)
    assert [part.codes for part in fused.low_bits.parts] == [layer.low_bits.parts[0].codes for layer in layers]
    for rows in (x, x.expand([2, 5, 40]).tile([4, 1, 1])):
        apart = np.concatenate([layer(rows).numpy() for layer in layers], -1)
        np.testing.assert_allclose(fused(rows).numpy(), apart, rtol=1e-5, atol=1e-5)
    fused.release()
    assert layers[0](x).shape == [2, 5, 6]


def test_a_flag_chooses_the_kernel_and_none_is_chosen_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path))  # where no library is kept
    held = form.packed(drawn(4, 32), (4, 32), 8)
    forced = Runtime("cpu", {weights.NAME: Choice("plain", by="PADDLEMIX_LOW_BITS=plain")})
    assert type(hold(forced, [held])) is Plain
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    warnings: list[str] = []
    monkeypatch.setattr(weights, "get_logger", lambda name: type("L", (), {"warning": staticmethod(warnings.append)}))
    weights._tell_slow.cache_clear()
    build._found.cache_clear()
    try:
        assert [type(hold(Runtime("cpu"), [held])) for _ in range(2)] == [Plain] * 2
        (told,) = warnings
        assert "several times slower than float32: no C compiler (cc, gcc or clang) is on the PATH" in told
        wanted = Runtime("cpu", {weights.NAME: Choice("compiled", by="PADDLEMIX_LOW_BITS=compiled")})
        with pytest.raises(BackendError, match=r"PADDLEMIX_LOW_BITS=compiled: no C compiler \(cc, gcc or clang\)"):
            hold(wanted, [held])
    finally:
        build._found.cache_clear()


@needs_compiler
def test_processes_that_compile_at_once_leave_one_library_in_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "small.c"  # the real one takes seconds
    source.write_text("int paddlemix_small(void) { return 1; }", encoding="utf-8")
    monkeypatch.setattr(build, "SOURCE", source)
    program = f"from pathlib import Path; from paddlemix.ops.low_bits import build; build.SOURCE = Path('{source}'); "
    program += "build.library()"
    command = ["env", f"PPMIX_HOME={tmp_path}", sys.executable, "-c", program]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0)] * 2
    folder = tmp_path / "kernels"
    (made,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path))
    warnings: list[str] = []
    monkeypatch.setattr(build, "get_logger", lambda name: type("L", (), {"warning": staticmethod(warnings.append)}))
    whole = made.read_bytes()
    for cut in (0, 4096):  # loading the second would end the process
        made.unlink()  # and so would cutting what is loaded
        made.write_bytes(whole[:cut])
        made.chmod(0o700)
        assert build._load().paddlemix_small() == 1, "a broken file gives way to a new one"
        assert [path.read_bytes() == whole for path in folder.iterdir()] == [True]
    assert not warnings
    tmp_path.chmod(0o777)  # another user could put a folder in its place
    assert build._load().paddlemix_small() == 1
    assert warnings.pop().endswith(f"others may write into {tmp_path}, and put another folder in its place")
    tmp_path.chmod(0o1777)
    assert build._load().paddlemix_small() == 1
    tmp_path.chmod(0o755)
    made.unlink()
    broken = b"no library"  # as one from a machine with a newer C library
    (folder / f"{made.stem.rpartition('-')[0]}-{hashlib.sha256(broken).hexdigest()[:16]}.so").write_bytes(broken)
    assert build._load().paddlemix_small() == 1
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(build.shutil, "which", lambda name: None)
        assert build._load().paddlemix_small() == 1, "what is kept needs no compiler"
    assert not warnings
    folder.chmod(0o777)
    before = made.stat().st_mtime_ns
    assert build._load().paddlemix_small() == 1
    assert warnings == [f"kernels (small.c) are compiled for this process alone, since others may "
                        f"write into {folder}"]  # fmt: skip
    assert made.stat().st_mtime_ns == before
    assert not list(folder.glob(".build*"))


@needs_compiler
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the other instructions of x86")
@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["x86-64", "haswell"])
def test_the_kernels_for_older_processors_compute_the_same(
    instructions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_NATIVE", {"x86_64": f"-march={instructions}"})
    monkeypatch.setattr(build, "_processor", lambda: instructions)
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path))
    build._found.cache_clear()
    try:
        for bits in form.BITS:
            test_products_equal_those_of_the_widened_weights(Compiled, bits)
    finally:
        build._found.cache_clear()


def test_a_card_gets_its_own_form_by_calls_that_paddle_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: inspect.signature(getattr(quant, name)) for name in ("weight_quantize", "weight_only_linear")}
    calls: list[tuple[str, dict]] = []

    def stub(name: str, answer):
        def call(*given, **more):
            calls.append((name, known[name].bind(*given, **more).arguments))
            return answer(*given)

        return call

    def quantized(weight, *more):
        return weight.astype("float32"), paddle.ones([1])

    monkeypatch.setattr(quant, "weight_quantize", stub("weight_quantize", quantized))
    monkeypatch.setattr(
        quant, "weight_only_linear", stub("weight_only_linear", lambda x, codes: paddle.matmul(x, codes))
    )
    parts = [form.packed(drawn(16, 64), (16, 64), 4), form.packed(drawn(32, 64), (32, 64), 4)]
    held = hold(Runtime("gpu"), parts)
    assert type(held) is OnCard
    assert held.product(paddle.ones([2, 3, 64])).shape == [2, 3, 48]
    assert calls[0][1]["algo"] == "weight_only_int4"
    assert list(calls[0][1]["x"].shape) == [64, 48]
    assert calls[1][1]["weight_dtype"] == "int4"
    assert calls[0][1]["group_size"] == calls[1][1]["group_size"] == 64


def test_an_npu_without_the_operator_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "kernel_dtypes", lambda name: frozenset())
    assert "the npu plug-in has no weight_only_linear" in why_not(Runtime("npu"), 8)
    assert "a card has weights of 8 and 4 bits, not of 16" in why_not(Runtime("gpu"), 16)
