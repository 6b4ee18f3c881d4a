# Every target builds .venv first when it has to. ARGS is passed on: make test ARGS="-k actions"

PYTHON_IN_VENV := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format report docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/\1#/p' $(MAKEFILE_LIST) | awk -F '# *' '{ printf "make %-8s %s\n", $$1, $$2 }'

venv: .venv/.stamp  ## install the library and all that a clone needs into .venv

demo: .venv/.stamp  ## run the demo
	$(PYTHON_IN_VENV) -m experiments.demo $(ARGS)

test: .venv/.stamp  ## run the tests, in two processes (ARGS="-n 0": in one)
	$(PYTHON_IN_VENV) -m pytest -n 2 --dist worksteal $(ARGS)

lint: .venv/.stamp  ## check style, formatting and types
	$(PYTHON_IN_VENV) -m ruff check
	$(PYTHON_IN_VENV) -m ruff format --check
	$(PYTHON_IN_VENV) -m pyright

format: .venv/.stamp  ## fix what ruff can fix and format
	$(PYTHON_IN_VENV) -m ruff check --fix
	$(PYTHON_IN_VENV) -m ruff format

report: .venv/.stamp  ## write the reports of the committed benchmarks: tables and figures in one page each
	@for results in experiments/results/benchmark/*/; do \
		$(PYTHON_IN_VENV) -m canvit_gym.cli report --results "$$results" || exit 1; done

docs: .venv/.stamp  ## build the documentation site into site/, warnings as errors
	$(PYTHON_IN_VENV) -m mkdocs build --strict

clean:  ## remove .venv, builds and caches
	rm -rf .venv build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv with a working pip is updated in place; any other is created again. The stamp is only written after success.
.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON_IN_VENV) -m pip --version >/dev/null 2>&1 || { \
		python=$$(sh scripts/find_python.sh) && \
		echo "Creating .venv with $$python" && "$$python" -m venv --clear .venv; }
	$(PYTHON_IN_VENV) -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
