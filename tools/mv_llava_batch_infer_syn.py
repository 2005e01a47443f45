# SPDX-License-Identifier: Apache-2.0
"""Caption synthesized views and rate whether they agree, as Bootstrap3D's tool of this name does.

    python tools/mv_llava_batch_infer_syn.py --model-path FOLDER --input path_to_image_list.json --image-root FOLDER

Every record names a square sheet of 2 x 2 views in "image_pth" (or "image_path"). The result is the same JSON list with
"caption" and "score" added; a run that was killed goes on where it was and gives the same file. Answers that are none
of the choices are kept under "unknown" and counted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.mv_llava_batch import main as run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Exit code 0; 2 when an option, the input or the model cannot be used."""
    return run("syn", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
