# SPDX-License-Identifier: Apache-2.0
"""Benchmarks at each evaluation and predictions at the end: asked for by a run, done by a higher layer.

Contract: ``ENTRY`` names a class of ``eval`` that takes the settings and has the methods of ``Asks``. It is looked up
by its name when a run asks for it, so that the trainer imports nothing from above.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paddlemix.checkpoint.folders import ending_ids
from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.utils.errors import PaddleMixError
from paddlemix.utils.logging import say
from paddlemix.utils.registry import named

if TYPE_CHECKING:
    from paddlemix.checkpoint.load import Loaded
    from paddlemix.models.llava import LlavaForCausalLM

ENTRY = "paddlemix.eval.training:InTraining"
PREDICTIONS = "generated_predictions.jsonl"
"""In ``output_dir``, as LLaMA-Factory names it; a line has ``prompt``, ``predict`` and ``label``."""


class Asking(Protocol):
    """What of the trainer is used."""

    args: Any
    model: "LlavaForCausalLM"
    state: Any

    def gathered(self, value: Any) -> list[Any]:
        """The value of each process."""

    def stop_together(self, problem: PaddleMixError | None) -> None:
        """Raise the first problem of all processes on each of them."""

    def is_world_process_zero(self) -> bool:
        """Whether this process writes."""


class Asks(Protocol):
    """Everything that has to be read is read when it is made; ConfigError or DataError before the run begins."""

    def open(
        self, tokenizer: Tokenizer, config: LlavaConfig, chat_template: dict[str, Any] | None, ends: Sequence[int]
    ) -> None:
        """What the model is asked with. ``chat_template``: that of the rows; ``ends``: ids that end an answer."""

    def measure(self, trainer: Asking, prefix: str, stopped: Callable[[], bool]) -> dict[str, float] | None:
        """Metrics of the benchmarks by name; called by every process, with the model in evaluation mode.

        None when ``stopped`` said so on one of them.
        """

    def predict(self, trainer: Asking) -> dict[str, float]:
        """Write the answers to the test rows, and return their metrics; called by every process."""


def asks_of(settings: TrainingSettings) -> Asks | None:
    """What a run asks its model; None when it asks nothing."""
    training = settings.training
    return named(ENTRY)(settings) if training.eval_benchmarks or training.do_predict else None


def goes_on_predicting(settings: TrainingSettings, output: Path) -> bool:
    """Whether a run that trains nothing finds the predictions of a former one in its folder, done or half done."""
    there = any((output / name).is_file() for name in (PREDICTIONS, f"{PREDICTIONS}.journal"))
    return settings.training.do_predict and not settings.training.do_train and there


def opened(
    asks: Asks | None,
    loaded: "Loaded",
    tokenizer: Tokenizer,
    config: LlavaConfig,
    chat_template: dict[str, Any] | None,
) -> Asks | None:
    """The same, ready to ask. ``config`` is that of the model as it trains, ``chat_template`` that of its rows."""
    if asks is not None:
        asks.open(tokenizer, config, chat_template, ending_ids(loaded.folder, loaded.base))
    return asks


def predict(trainer: Any, metrics: dict[str, Any], write: Callable[[str, dict[str, Any]], None]) -> None:
    """``do_predict``: the answers to the test rows; their metrics are added to ``metrics`` and have their own file."""
    found = trainer.predictions()
    trainer.log(dict(found))
    metrics.update(found)
    write("predict_results.json", found)
    if trainer.is_world_process_zero():
        say(f"The predictions are in {Path(trainer.args.output_dir) / PREDICTIONS}")
