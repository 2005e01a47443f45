# SPDX-License-Identifier: Apache-2.0
"""The errors that a person can do something about. An entry point prints their text and exits with their code."""

from paddlemix.utils.shown import readable

IN_USE: list[str] = []
"""Sentences about parts that are not ours and are in use, with the remedy should one fail: shown with such an error."""


class PaddleMixError(Exception):
    """Base of every error whose text names what, where, the value and the remedy.

    The text may hold what a foreign file says: long values are cut, and control characters are shown as escapes.
    """

    exit_code = 2

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(readable(item) if isinstance(item, str) else item for item in arguments))


class ConfigError(PaddleMixError):
    """A settings file, a command line or an environment flag is wrong."""


class DataError(PaddleMixError):
    """A record, an image or an annotation file is wrong."""


class CheckpointError(PaddleMixError):
    """A model folder, an adapter or one of their files is wrong."""


class BackendError(PaddleMixError):
    """A device or a compute path that was asked for cannot be had."""


class TrainingError(PaddleMixError):
    """A running training cannot go on (non-finite loss, disk full, a lost checkpoint)."""

    exit_code = 1
