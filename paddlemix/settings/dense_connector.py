# SPDX-License-Identifier: Apache-2.0
"""Dense Connector (Yao et al. 2024, "Dense Connector for MLLMs"): which layers of the tower join the chosen one's.

Facts from github.com/HJYao00/DenseConnector (``dense_connector.py``), where layer 0 is the input of the first layer:

- ``sti``: the patches of layers 7 and 15, every 8 of a row averaged, behind the patches: more rows.
- ``sci``: the patches of layers 7 and 15 beside the patches: rows three times as wide.
- ``dci``: the mean of the lower half of the layers and that of the upper half beside the patches. CLIP-L has 24 layers
  (0 to 11 and 12 to 23), SigLIP so400m 27 (0 to 12 and 13 to 25).
"""

NO_CONNECTOR = "none"
CONNECTORS = (NO_CONNECTOR, "sti", "sci", "dci")
POOLED = 8
"""Patches that ``sti`` averages into one row; what is left over at the end is not used."""
_TWO = (7, 15)


def joined_layers(kind: str, depth: int) -> tuple[tuple[int, ...], ...]:
    """The groups of layers whose means join the features of a tower of ``depth`` layers; empty for ``none``."""
    if kind == NO_CONNECTOR:
        return ()
    if kind == "dci":
        half = depth // 2
        return tuple(range(half)), tuple(range(half, 2 * half))
    return tuple((layer,) for layer in _TWO)


def layers_side_by_side(kind: str) -> int:
    """How many times as wide the rows become."""
    return 3 if kind in ("sci", "dci") else 1


def more_rows(kind: str, patches: int) -> int:
    """Rows that come behind the ``patches`` of a tile."""
    return len(_TWO) * (patches // POOLED) if kind == "sti" else 0
