# SPDX-License-Identifier: Apache-2.0
"""Ask a model the questions of a benchmark and score its answers: `paddlemix eval` under the path of the other tools.

python paddlemix/tools/evaluate.py pope --model-path MODEL --data eval/pope
"""

import sys
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.eval.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
