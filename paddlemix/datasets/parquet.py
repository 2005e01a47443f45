# SPDX-License-Identifier: Apache-2.0
"""Parquet files in the form of the HF hub. pyarrow is asked for when such a file is read, and by nothing else.

A row cannot be had without the whole group of rows around it, images included: the rows are written out once.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from paddlemix.datasets import unpacked
from paddlemix.utils.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet

ENDING = ".parquet"

_TOGETHER = 16
"""Rows that are in memory at once: each may hold images."""


def written_out(path: str) -> unpacked.Written:
    """The rows of a parquet file, see ``unpacked.written_out``.

    DataError also when pyarrow is missing (with the pip line), and when the file is damaged.
    """
    reader = _opened(path)
    return unpacked.written_out(path, "parquet", lambda: _rows(reader, path))


def _opened(path: str) -> "pyarrow.parquet.ParquetFile":
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path}: parquet is read with pyarrow, which is not installed (pip install 'pyarrow<22'); or write its "
            "rows as JSON lines (.jsonl) and its images as files"
        ) from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _rows(reader: "pyarrow.parquet.ParquetFile", path: str) -> Iterator[dict[str, Any]]:
    import pyarrow

    try:
        for batch in reader.iter_batches(batch_size=_TOGETHER):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)})") from error
