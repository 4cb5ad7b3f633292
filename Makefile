# `make help` lists what there is. ARGS="--flag value" passes flags on.
SHELL := /bin/bash
ARGS ?=
RUN := .venv/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check

# Those first that have wheels of PyBullet.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.10 python3.13 python3.12 python3,\
  $(shell $(name) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $(name))))
# Whether NVIDIA's libraries are installed, without which TensorFlow sees no GPU.
GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo 1 || echo 0)
READY := .venv/ready$(if $(filter-out 0,$(GPU)),-gpu)

# What `make train` trains, with PyBullet and without.
BULLET = $(shell $(RUN) -c 'import importlib.util as find; print(find.find_spec("pybullet") and 1 or "")' 2>/dev/null)
BALANCE := --task InvertedPendulumBulletEnv-v0 --termination True --steps 4e4 \
  --eval_every 1000 --eval_episodes 3
CONTROL := --task dmc_cartpole_balance --render fast --steps 4e4 \
  --eval_every 2500 --eval_episodes 3

.PHONY: help train test slow chaos soak bench study second competent learn try-transfer pybullet clean

help:  ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: $(READY)  ## Sets up, then trains a cart to balance a pole on a CPU.
	@$(if $(BULLET),:,echo 'Without PyBullet (no wheels for this Python), the task is one of DeepMind Control.')
	$(RUN) dreamer.py --preset cpu $(if $(BULLET),$(BALANCE),$(CONTROL)) $(ARGS)

test: .venv/ready-test  ## Sets up, then runs the tests (not the slow ones).
	$(RUN) -m pytest tests -m 'not slow' --numprocesses 2 --dist loadfile $(ARGS)

slow: .venv/ready-test  ## Runs the slow tests, those of chaos among them.
	$(RUN) -m pytest tests -m slow $(ARGS)

chaos: .venv/ready-test  ## Kills a run twenty times; reads 20,000 bad checkpoints.
	$(RUN) -m pytest tests/test_chaos.py tests/test_checkpoints.py -m slow -s $(ARGS)

soak: .venv/ready-test  ## Watches memory, files and processes of a run for an hour.
	$(RUN) tests/soak.py $(ARGS)

bench: $(READY)  ## Measures speed: a table, bench.json and growth.png.
	$(RUN) -m benchmarks.bench --plot growth.png $(ARGS)

study: $(READY)  ## Runs what is missing of the study in results/; may be stopped.
	$(RUN) -m results.study $(ARGS)

second: $(READY)  ## The same for the second study, of agents that learn.
	$(RUN) -m results.second $(ARGS)

competent: $(READY)  ## Its transfer again, from sources that have all learned.
	$(RUN) -m results.competent $(ARGS)

learn: $(READY)  ## Runs what is missing of the table of what a core learns.
	$(RUN) -m results.learn $(ARGS)

try-transfer: $(READY)  ## Transfer from the stored source beside scratch: curves, films.
	$(RUN) -m results.second --do try $(ARGS)

pybullet: $(READY)  ## Builds PyBullet from source where it has no wheels.
	$(PIP) $$(sed -n 's/^\(pybullet[^;]*\);.*/\1/p' requirements.txt)

clean:  ## Removes the virtual environments.
	rm -rf .venv .venv-sheeprl

# An environment whose pip does not work, as a failed `venv` leaves it, is made
# anew, and so is one whose interpreter is gone.
ifeq ($(realpath .venv/bin/python),)
.PHONY: .venv/made
endif
.venv/made:
	@test -n '$(PYTHON)' || { echo 'error: Python 3.10, 3.11, 3.12 or 3.13 is needed; name one with make PYTHON=...' >&2; exit 2; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || { \
	  echo 'Making .venv with $(PYTHON); its packages take 3 GB and some minutes.'; \
	  $(PYTHON) -m venv --clear .venv; } || { \
	  echo 'error: $(PYTHON) cannot make a virtual environment; Debian and Ubuntu need apt-get install python3-venv' >&2; exit 2; }
	@touch $@

.venv/ready: requirements.txt requirements-no-deps.txt .venv/made
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -r requirements-no-deps.txt
	@$(RUN) -c 'import sys; sys.version_info < (3, 12) or print("PyBullet has no wheels for Python 3.12 and newer: *BulletEnv-v0 tasks are left out; DeepMind Control, Atari and Gymnasium are there.")'
	@touch $@

.venv/ready-gpu: requirements-gpu.txt .venv/ready
	$(PIP) -r requirements-gpu.txt
	@touch $@

.venv/ready-test: $(READY) tests/requirements.txt
	$(PIP) -r tests/requirements.txt
	@touch $@
