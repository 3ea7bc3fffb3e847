# make serve starts the service; make test runs what CI runs.
PROFILE ?= local
MODELS ?=
ARCHIVE ?=
# On the command line alone: shells have variables of these names.
GROUPS :=
ARCH :=
VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
IMAGE ?= visionserve:$(VERSION)
DEVICE ?= cpu
PYTHON := .venv/bin/python
VISIONSERVE := .venv/bin/visionserve
INSTALL := PYTHONPATH=handler:scripts $(PYTHON) -m visionserve_tools.installer
SERVES := .venv/.serves
INSTALLED := .venv/.installed
LUA := /usr/lib/nginx/modules/ngx_http_lua_module.so /usr/lib/nginx/modules/ngx_stream_module.so
DEBIAN := /usr/bin/chromium /usr/bin/chromedriver /usr/sbin/nginx $(LUA) /usr/bin/prometheus /usr/bin/faketime

# Containers keep Python from writing bytecode, and then each process compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

# A virtual environment names the folder that it was made in, and works nowhere else.
ifeq ($(shell grep -s '^command = ' .venv/pyvenv.cfg | grep -cvF "$$(pwd -P)/.venv"),1)
$(info This folder was moved: its .venv is made anew.)
$(shell rm -f .venv/pyvenv.cfg .venv/.serves .venv/.installed)
endif

.PHONY: help audit clean status serve stop test compiled test-fast unit unit-heavy test-arm test-ray image test-image sbom release fuzz chaos overload soak evaluate robustness bench bench-families bench-page lint format lock

help:
	@echo 'make serve     build, start and ask [PROFILE=local] [MODELS="resnet18 my_archive"] [GROUPS=everyday] [ARCHIVE=file.mar]'
	@echo 'make status    what runs, where, with which models'
	@echo 'make stop      stop the server [PROFILE=local]'
	@echo 'make test      lint, types and every test'
	@echo 'make test-fast the unit tests, which start no process and open no socket, in seconds'
	@echo 'make format    ruff and biome write their style, make lint asks for it'
	@echo 'make bench     measure beside other servers [QUICK=1]; also make bench-families, bench-page, evaluate, soak, overload, chaos, fuzz'
	@echo 'make image     build the container with buildah [IMAGE=name:tag] [DEVICE=cpu] [MODELS=resnet18] [ARCH=arm64]; make test-image runs it'
	@echo 'make test-arm  install, serve and ask in an ARM64 Debian that qemu runs; needs Linux 6.7'
	@echo 'make audit     ask for known advisories of what is installed, and of the libraries in TorchServe'
	@echo 'make sbom      name all Python packages of the image with their hashes, in dist/ (CycloneDX)'
	@echo 'make release   check tag, version, CHANGELOG and the wheel, which is left in dist/'
	@echo 'make clean     stop every server; remove .venv, logs, tokens, caches and samples, but no archive'

# A word that is not read would be ignored in silence. Those with `_` are the environment's, as PIP_CERT.
comma := ,
WORDS := PROFILE MODELS ARCHIVE GROUPS ARCH IMAGE DEVICE QUICK FAULTS PYTHON VISIONSERVE INSTALL HOME TMPDIR PATH
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
$(foreach name,$(filter-out $(WORDS),$(GIVEN)),$(if $(findstring _,$(name)),,$(error \
	make reads no $(name)$(addprefix $(comma) but ,$(filter $(name)S $(name:%S=%),$(WORDS))); make help names what it reads)))

serve: $(SERVES)
	$(VISIONSERVE) serve start --profile $(PROFILE) $(if $(ARCHIVE),--archive "$(ARCHIVE)",$(if $(MODELS),--models $(MODELS))) $(if $(GROUPS),--groups "$(GROUPS)")

stop: $(SERVES)
	$(VISIONSERVE) serve stop --profile $(PROFILE)

status: $(SERVES)
	$(VISIONSERVE) serve status

# Archives stay: they may be the user's own.
clean:
	-for profile in $(notdir $(patsubst %/,%,$(dir $(wildcard config/*/model-config.yaml)))); do \
		test ! -d .torchserve/$$profile || $(VISIONSERVE) serve stop --profile $$profile; done
	-test ! -d .torchserve/nginx || $(VISIONSERVE) proxy stop
	rm -rf .venv .torchserve dist model_store/.converted .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find handler scripts tests -name __pycache__ -prune -exec rm -rf {} +

audit: $(INSTALLED)
	$(VISIONSERVE) install audit
	status=0; $(PYTHON) -m pip_audit --strict --no-deps --disable-pip -r config/constraints.txt || status=1; \
		$(VISIONSERVE) audit || status=1; exit $$status

# Three processes, as the tests often wait for servers; each test file is one process's. What these
# would compile, each for itself, is compiled beside the lint, which takes one core.
test: $(INSTALLED) $(DEBIAN)
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint compiled
	$(PYTHON) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

compiled: $(INSTALLED)
	@$(PYTHON) -m pytest --collect-only --quiet > .venv/collected || { cat .venv/collected; exit 1; }

# The unit tests in two processes, of which one imports PyTorch, SciPy and scikit-learn.
test-fast: $(INSTALLED)
	$(MAKE) --no-print-directory --jobs 2 --output-sync unit unit-heavy

unit: FOLDERS = tests/unit --ignore tests/unit/heavy
unit-heavy: FOLDERS = tests/unit/heavy
unit unit-heavy:
	$(PYTHON) -m pytest -p no:schemathesis -p no:hypothesispytest -p no:anyio $(FOLDERS)

# What the tests drive that pip does not have: a browser, nginx and Prometheus.
$(DEBIAN) /usr/bin/wrk:
	apt-get update -qq
	apt-get install -qq --yes --no-install-recommends chromium chromium-driver nginx libnginx-mod-http-lua \
		libnginx-mod-stream prometheus faketime wrk

# Ray listens on all interfaces, so that its test is not a part of `test`.
test-ray: $(INSTALLED)
	$(VISIONSERVE) install ray
	$(PYTHON) -m pytest tests/end_to_end/test_ray.py

# A Debian of ARM64 in namespaces of its own, kept in .cache/arm64.
test-arm: $(INSTALLED) /usr/bin/qemu-aarch64-static /usr/sbin/debootstrap
	ARM=1 $(PYTHON) -m pytest tests/end_to_end/test_arm.py

/usr/bin/qemu-aarch64-static /usr/sbin/debootstrap:
	apt-get update -qq
	apt-get install -qq --yes --no-install-recommends qemu-user-static debootstrap

# The container, built from Debian's packages with buildah; MODELS is the one model in it. Another
# architecture's programs are run by qemu in a user namespace.
image: $(SERVES) /usr/bin/buildah $(if $(filter arm64,$(ARCH)),/usr/bin/qemu-aarch64-static) sbom
	$(VISIONSERVE) image --tag $(IMAGE) --device $(DEVICE) $(if $(MODELS),--model $(MODELS)) $(if $(ARCH),--arch $(ARCH))

# In a network of its own, as a container listens on all interfaces.
test-image: $(INSTALLED) image
	IMAGE=$(IMAGE) unshare --net sh -c 'ip link set lo up && exec $(PYTHON) -m pytest tests/end_to_end/test_image.py'

# Of what the image holds beside Debian's packages: setuptools has gone again, and Windows' are not there.
sbom: $(SERVES)
	$(VISIONSERVE) install audit
	mkdir -p dist
	sed -E '/^setuptools==|win32/,/[^\\]$$/d' config/requirements.txt config/requirements-java.txt \
		$(if $(filter cuda,$(DEVICE)),config/requirements-pytorch.txt) \
		| $(PYTHON) -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible \
		--output-file dist/visionserve-$(DEVICE).cdx.json -

release: $(INSTALLED)
	.ci/release

/usr/bin/buildah:
	apt-get update -qq
	apt-get install -qq --yes --no-install-recommends buildah debootstrap

fuzz: $(INSTALLED)
	$(PYTHON) -m tests.stress.fuzz

chaos: $(INSTALLED)
	$(PYTHON) -m tests.stress.chaos $(FAULTS)

overload: $(INSTALLED)
	$(PYTHON) -m tests.stress.overload

soak: $(INSTALLED)
	$(PYTHON) -m tests.stress.soak

evaluate: $(INSTALLED)
	$(VISIONSERVE) evaluate

robustness: $(INSTALLED)
	$(VISIONSERVE) robustness

bench: $(INSTALLED) /usr/bin/wrk
	$(VISIONSERVE) install bench
	$(PYTHON) -m tests.bench $(if $(QUICK),--quick)

bench-families: $(INSTALLED)
	$(PYTHON) -m tests.bench.families $(MODELS)

bench-page: $(INSTALLED) $(DEBIAN)
	$(PYTHON) -m tests.bench.page

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/biome check --config-path=config handler/visionserve/web

format: $(INSTALLED)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	.venv/bin/biome check --write --config-path=config handler/visionserve/web

# The releases of all that is installed, and the hashes of what an extra takes beside what serving
# and the extras within it take, for every platform.
HASHES := .venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --constraint config/constraints.txt
beside = $$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' $(1:%=config/requirements%txt))
lock: $(INSTALLED)
	$(PYTHON) -m pip freeze --exclude-editable | sed 's/+cpu$$//' > config/constraints.txt
	$(VISIONSERVE) install lock
	echo 'setuptools>=77' | $(HASHES) --output-file config/requirements.txt - pyproject.toml
	for extra in java lock pytorch; do $(HASHES) --output-file config/requirements-$$extra.txt \
		--extra $$extra $(call beside,.) pyproject.toml || exit; done
	$(HASHES) --output-file config/requirements-build.txt --extra build $(call beside,. -pytorch.) pyproject.toml
	$(HASHES) --output-file config/requirements-dev.txt --extra dev $(call beside,. -pytorch. -build.) pyproject.toml

# What serving takes; `visionserve serve` itself installs what building takes, where it has to build.
# The project itself has no hash, and is built with the setuptools that was checked.
$(SERVES): pyproject.toml config/constraints.txt config/requirements.txt config/requirements-lock.txt
	@{ test -f .venv/pyvenv.cfg && $(PYTHON) -m pip --version; } >/dev/null 2>&1 || python3.11 -m venv --clear .venv
	@$(INSTALL) 'Installing what serving takes (500 MB on disk).' \
		--no-deps --require-hashes --requirement config/requirements.txt
	@$(INSTALL) 'Installing visionserve.' --no-deps --no-build-isolation --editable .
	@touch $@

$(INSTALLED): $(SERVES)
	@$(VISIONSERVE) install dev
	@touch $@
