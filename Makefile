# make demo | test | quick | faults | check | clean. Each sets up all it needs: a virtual environment in .venv, made once and reused.
PYTHON ?= python3
PY := .venv/bin/python
SETUP := .venv/.set-up

# uv leaves no .pyc by itself, and every one of Ray's processes would compile its imports again
unexport PYTHONDONTWRITEBYTECODE
export PYTHONUNBUFFERED = 1

.PHONY: setup demo test quick faults check clean

setup: $(SETUP)
	@echo
	@echo "raykd is set up in .venv. Run next:"
	@echo "    source .venv/bin/activate        # so that python is .venv/bin/python; once in each shell"
	@echo "    make demo                        # a whole campaign on a small pool, in a minute"
	@echo "    python jobs/new.py FOLDER        # a config for your own images; --help says more"

$(SETUP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(PY) -m uv pip install --quiet --python $(PY) --compile-bytecode --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(SETUP)
	$(PY) jobs/active_round.py --preset demo

# everything; CI=1 makes hypothesis try harder (tests/profiles.py). Two processes, each with a Ray of its own, a file of
# tests at a time in the order they stand: the tests of whole jobs come early and wait more than they work
test: $(SETUP)
	$(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# all that needs no Ray and less than a second; two processes as well
quick: $(SETUP)
	$(PY) -m pytest -m "not ray and not slow and not nightly" --numprocesses 2 --dist loadfile --no-loadscope-reorder

# all tests with several nodes (root, iproute2), those that take too long for every change too: the fault matrix, an hour,
# and jobs/results/faults.md
faults: $(SETUP)
	RAYKD_WRITE_FAULTS=1 $(PY) -m pytest tests/cluster -m cluster

check: $(SETUP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf .venv runs
