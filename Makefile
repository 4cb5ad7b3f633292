# `make help` lists what there is. ARGS="--flag value" passes flags on.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach name,python3.11 python3.10 python3,\
  $(shell $(name) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' 2>/dev/null && echo $(name))))
ARGS ?=
RUN := .venv/bin/python

.PHONY: help train test slow chaos soak bench study try-transfer clean

help:  ## Lists the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | column -t -s $$'\t'

train: .venv/ready  ## Sets up, then trains a cart to balance a pole on a CPU.
	$(RUN) dreamer.py --preset cpu --task InvertedPendulumBulletEnv-v0 \
	  --termination True --logdir ./logdir/balance/dreamer/0 --steps 1e5 \
	  --eval_every 2500 --eval_episodes 3 $(ARGS)

test: .venv/ready-test  ## Sets up, then runs the tests (not the slow ones).
	$(RUN) -m pytest tests -m 'not slow' --numprocesses 2 --dist loadfile $(ARGS)

slow: .venv/ready-test  ## Runs the slow tests, those of chaos among them.
	$(RUN) -m pytest tests -m slow $(ARGS)

chaos: .venv/ready-test  ## Kills a run twenty times; reads 20,000 bad checkpoints.
	$(RUN) -m pytest tests/test_chaos.py tests/test_checkpoints.py -m slow -s $(ARGS)

soak: .venv/ready-test  ## Watches memory, files and processes of a run for an hour.
	$(RUN) tests/soak.py $(ARGS)

bench: .venv/ready  ## Measures speed: a table, bench.json and growth.png.
	$(RUN) -m benchmarks.bench --plot growth.png $(ARGS)

study: .venv/ready  ## Runs what is missing of the study in results/; may be stopped.
	$(RUN) -m results.study $(ARGS)

try-transfer: .venv/ready  ## Transfer from the stored source beside scratch, two curves.
	$(RUN) -m results.study --do try $(ARGS)

clean:  ## Removes the virtual environments.
	rm -rf .venv .venv-sheeprl

.venv/bin/python:
	@test -n '$(PYTHON)' || { echo 'error: Python 3.10 or 3.11 is needed (PyBullet has no newer wheels); name one with make PYTHON=...' >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/ready: requirements.txt | .venv/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/ready-test: .venv/ready tests/requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@
