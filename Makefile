PYTHON ?= python
SMOKE ?= /tmp/zsnr_jax/smoke
SD := $(SMOKE)/sd
TINY := --config=configs/sd_tiny.py:smoke --config.pretrained=$(SD)/tiny
TRAINED := $(basename $(notdir $(shell grep -l "trained=True" experiments/*.py)))

.PHONY: check test parity smoke drill plan notebooks

check:  ## format, lint and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

test:  ## everything
	$(PYTHON) -m pytest -n 2 --dist loadfile

parity:  ## our solvers beside those of torch diffusers, of the `parity` extra
	$(PYTHON) -m pytest tests/parity

smoke:  ## the main path of every recipe that runs on a laptop, and every trained experiment, in small
	rm -rf $(SMOKE)
	$(PYTHON) -m zsnr_jax.main --config=configs/brightness.py:smoke --workdir=$(SMOKE)/fixed
	$(PYTHON) -m zsnr_jax.main --config=configs/brightness.py:flawed,smoke --workdir=$(SMOKE)/flawed
	$(PYTHON) -m zsnr_jax.report $(SMOKE)/fixed $(SMOKE)/flawed --out=$(SMOKE)/report.html
	$(PYTHON) -m zsnr_jax.random_folder --out=$(SD)/tiny
	$(PYTHON) -m zsnr_jax.data.scenes --out=$(SD)/scenes --num=64 --size=32
	$(PYTHON) -m zsnr_jax.data.encode --pretrained=$(SD)/tiny --source=$(SD)/scenes --out=$(SD)/latents --image_size=32
	$(PYTHON) -m zsnr_jax.main $(TINY) --config.dataset.latents=$(SD)/latents --workdir=$(SD)/run
	$(PYTHON) -m zsnr_jax.main $(TINY) --config.dataset.latents=$(SD)/latents --workdir=$(SD)/run --mode=export
	set -e; for name in $(TRAINED); do \
	  $(PYTHON) -m experiments.$$name --smoke --out=$(SMOKE)/claims --workdir=$(SMOKE); \
	done
	$(PYTHON) -m zsnr_jax.report $(SMOKE)/claims

drill:  ## thirty faults, and a run that ends as if there had been none
	$(PYTHON) -m experiments.fault_drill --faults=30 --seed=30 --minutes=20 --out=$(SMOKE)/drill.json

plan:  ## what compiles for a TPU that is not there, by the `tpu` extra
	JAX_PLATFORMS=cpu $(PYTHON) -m pytest tests/test_chips.py tests/test_hlo.py tests/test_plan.py
	rm -rf $(SD) && $(PYTHON) -m zsnr_jax.random_folder --out=$(SD)/tiny
	JAX_PLATFORMS=cpu $(PYTHON) -m zsnr_jax.main $(TINY) --config.dataset.image_size=32 --config.parallel.mode=fsdp --workdir=$(SD)/plan --mode=plan --config.plan.topology=v5e:4x4

notebooks:  ## run each notebook's .py from a clean kernel and store its outputs in the .ipynb
	$(PYTHON) -m jupytext --to ipynb --execute notebooks/*.py
