# SPDX-License-Identifier: Apache-2.0
"""Can what a chat and a training import be imported? Versions alone do not tell: packages break each other."""

import contextlib
import importlib
import io

from paddlemix.doctor.findings import Finding, fail, ok
from paddlemix.utils.install import install_line

CHAT = "paddlemix.generation.load"
TRAINING = "paddlemix.trainer.llava_trainer"


def import_findings() -> list[Finding]:
    """One line for the chat and one for the training. Imports paddle and paddlenlp, which takes seconds."""
    return [_imported("chat", CHAT), _imported("training", TRAINING)]


def _imported(what: str, module: str) -> Finding:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever a broken package raises is the finding
        reason = str(error).strip().splitlines()[-1:] or ["without a text"]
        return fail(what, f"cannot be started: {type(error).__name__}: {reason[0]}; mend it with:\n{install_line()}")
    return ok(what, "everything that it imports can be imported")
