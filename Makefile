# make serve starts the service; make test runs what CI runs.
PROFILE ?= local
MODELS ?= resnet18
ARCHIVE ?=
IMAGES ?= ../shared/imagenet-samples
PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip install --quiet --constraint config/constraints.txt --editable
SERVES := .venv/.serves
INSTALLED := .venv/.installed
LUA := /usr/lib/nginx/modules/ngx_http_lua_module.so /usr/lib/nginx/modules/ngx_stream_module.so
DEBIAN := /usr/bin/chromium /usr/bin/chromedriver /usr/sbin/nginx $(LUA) /usr/bin/prometheus

.PHONY: serve stop test test-ray fuzz chaos overload soak evaluate robustness bench lint lock

serve: $(SERVES)
	$(PYTHON) -m scripts.serve start --profile $(PROFILE) $(if $(ARCHIVE),--archive $(ARCHIVE),--models $(MODELS))

stop: $(SERVES)
	$(PYTHON) -m scripts.serve stop --profile $(PROFILE)

test: lint $(DEBIAN)
	$(PYTHON) -m pytest

# What the tests drive that pip does not have: a browser, nginx and Prometheus.
$(DEBIAN) /usr/bin/wrk:
	apt-get update -qq
	apt-get install -qq --yes --no-install-recommends chromium chromium-driver nginx libnginx-mod-http-lua \
		libnginx-mod-stream prometheus wrk

# Ray listens on all interfaces, so that its test is not a part of `test`.
test-ray: $(INSTALLED)
	$(PIP) '.[ray]'
	$(PYTHON) -m pytest tests/test_ray.py

fuzz: $(INSTALLED)
	$(PYTHON) -m scripts.fuzz --runs 20000

chaos: $(INSTALLED)
	$(PYTHON) -m scripts.chaos

overload: $(INSTALLED)
	$(PYTHON) -m scripts.soak overload --seconds 120

soak: $(INSTALLED)
	$(PYTHON) -m scripts.soak steady --minutes 30

evaluate: $(INSTALLED)
	$(PYTHON) -m scripts.evaluate $(IMAGES)

robustness: $(INSTALLED)
	$(PYTHON) -m scripts.robustness $(IMAGES)

bench: $(INSTALLED) /usr/bin/wrk
	$(PIP) '.[bench]'
	$(PYTHON) -m scripts.bench

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

lock: $(INSTALLED)
	$(PYTHON) -m pip freeze --exclude-editable | sed 's/+cpu$$//' > config/constraints.txt

# What serving takes; `scripts.serve` itself installs what building takes, where it has to build.
$(SERVES): pyproject.toml config/constraints.txt
	test -x $(PYTHON) || python3.11 -m venv .venv
	$(PIP) .
	touch $@

$(INSTALLED): $(SERVES)
	$(PYTHON) -m scripts.environment dev
	touch $@
