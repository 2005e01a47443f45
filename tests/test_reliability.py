# SPDX-License-Identifier: Apache-2.0
"""The page of faults names tests that exist, has every line once, and its counts are those of its table."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def tool():
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "tools" / "reliability.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_faults_is_in_order(capsys):
    assert tool().main(["--check"]) == 0, capsys.readouterr().out


def test_what_is_wrong_with_the_page_is_named():
    page = tool()
    text = page.PAGE.read_text(encoding="utf-8")
    renamed = page.faults(text.replace("test_no_key_is_abbreviated", "test_no_key_is_abbrev"))
    assert renamed[0] == "line 6: there is no test settings/test_settings_loader.py::test_no_key_is_abbrev"
    untested = page.faults(text.replace("| tested |", "| not built |", 1))
    assert untested == ["line 1: the state is \"not built\", its tests are ['plain']"]
    assert page.faults(text.replace("| 7 |", "| 8 |"))[0].startswith("the lines are not numbered 1 to 125")
    assert page.counts(text.replace("| tested |", "| not built |", 1)) != page.counts(text)
