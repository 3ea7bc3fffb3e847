# make serve starts the service; make test runs what CI runs.
PROFILE ?= local
MODELS ?= resnet18
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
DEBIAN := /usr/bin/chromium /usr/bin/chromedriver /usr/sbin/nginx

.PHONY: serve stop test lint lock

serve: $(INSTALLED)
	$(PYTHON) -m scripts.serve start --profile $(PROFILE) --models $(MODELS)

stop: $(INSTALLED)
	$(PYTHON) -m scripts.serve stop --profile $(PROFILE)

test: lint $(DEBIAN)
	$(PYTHON) -m pytest

# What the tests drive that pip does not have: a browser and nginx.
/usr/bin/chromium /usr/bin/chromedriver /usr/sbin/nginx:
	apt-get update -qq
	apt-get install -qq --yes chromium chromium-driver nginx

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

lock: $(INSTALLED)
	$(PYTHON) -m pip freeze --exclude-editable > config/constraints.txt

$(INSTALLED): pyproject.toml config/constraints.txt
	test -x $(PYTHON) || python3.11 -m venv .venv
	$(PYTHON) -m pip install --quiet --constraint config/constraints.txt --editable '.[dev]'
	touch $@
