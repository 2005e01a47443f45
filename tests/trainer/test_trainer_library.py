# SPDX-License-Identifier: Apache-2.0
"""PaddleNLP is imported without what a training never asks, and whoever does ask gets it."""

import subprocess
import sys

import pytest

from paddlemix.trainer.library import UNASKED, without


def run(code: str) -> str:
    """What a new interpreter prints."""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.splitlines()[-1]


def test_a_trainer_is_imported_without_the_libraries_that_it_never_asks():
    asked = {*UNASKED, "pyarrow"}
    code = f"import sys, paddlemix.trainer.llava_trainer; print(sorted({asked} & set(sys.modules)))"
    assert run(code) == "[]"


def test_what_paddlenlp_took_of_them_works_when_it_is_called():
    code = (
        "import paddlemix.trainer.library, paddlenlp, sys\n"
        "from paddlenlp.datasets.zero_padding_dataset import block_diag\n"
        "from paddlenlp.trainer import trainer\n"
        "joined = block_diag([[1]], [[2]]).tolist()\n"
        "import scipy.linalg\n"
        "print(joined, scipy.linalg.__file__ is not None, trainer.datasets.Dataset.__module__, paddlenlp.trl.__name__)"
    )
    assert run(code) == "[[1, 0], [0, 2]] True datasets.arrow_dataset paddlenlp.trl"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """``heavy_here`` with a part, and ``asks_it``, which takes a function of that part and one of a missing module."""
    (tmp_path / "heavy_here").mkdir()
    (tmp_path / "heavy_here" / "__init__.py").write_text("answer = 41\n")
    (tmp_path / "heavy_here" / "part.py").write_text("def more(by, twice=False): return 42 + by * (1 + twice)\n")
    (tmp_path / "asks_it.py").write_text(
        "import heavy_here\nfrom heavy_here.part import more\nfrom missing_here import one\nheavy_here.added = 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("heavy_here", "heavy_here.part", "asks_it"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("modules")
def test_a_stand_in_becomes_the_module_when_it_is_asked():
    before = list(sys.meta_path)
    with without(["heavy_here", "missing_here"]):
        import asks_it
    assert sys.meta_path == before
    assert not {"heavy_here", "heavy_here.part", "missing_here"} & set(sys.modules)
    assert asks_it.more(1, twice=True) == 44
    assert asks_it.heavy_here.answer == 41
    assert asks_it.heavy_here.added == 1
    with pytest.raises(ModuleNotFoundError, match="missing_here"):
        asks_it.one()


@pytest.mark.usefixtures("modules")
def test_a_module_that_is_imported_already_has_no_stand_in():
    import heavy_here

    with without(["heavy_here", "missing_here"]):
        import asks_it
    assert asks_it.heavy_here is heavy_here
    assert asks_it.more.__module__ == "heavy_here.part"
    assert sys.modules["heavy_here"] is heavy_here


@pytest.mark.usefixtures("modules")
def test_nothing_is_left_behind_when_the_import_fails():
    before = list(sys.meta_path)
    with pytest.raises(ModuleNotFoundError, match="missing_here"), without(["heavy_here"]):
        import asks_it  # noqa: F401
    assert sys.meta_path == before
    assert "heavy_here" not in sys.modules
