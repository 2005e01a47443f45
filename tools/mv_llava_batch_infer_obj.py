# SPDX-License-Identifier: Apache-2.0
"""Describe, caption and rate objects with four views each, as Bootstrap3D's tool of this name does.

    python tools/mv_llava_batch_infer_obj.py --model-path FOLDER --input objects.csv --image-root FOLDER

Views lie in Cap3D_imgs_view{0,1,4,5}/<id> (the ending may be left out). The result is a JSON list of {id, desciption,
caption, score, level, style}; a run that was killed goes on where it was and gives the same file. Answers that are none
of a question's choices are kept under "unknown" and counted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.mv_llava_batch import main as run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Exit code 0; 2 when an option, the input or the model cannot be used."""
    return run("obj", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
