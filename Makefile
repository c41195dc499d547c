# The jobs of a developer; `make help` lists them. Each installs what it needs first (tools/setup.sh), once.
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:  ## what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup:
	@tools/setup.sh

setup-lint:
	@tools/setup.sh --lint

dev: setup  ## the debug build, in build/dev (PYTHONPATH=build/dev/python)
	@tools/build.sh dev

release: setup  ## the release build, in build/release
	@tools/build.sh release

test: dev  ## every test, C++ and Python
	@tools/test.sh dev all

asan: setup  ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/build.sh asan
	@tools/test.sh asan cpp
	@tools/test.sh asan python -m "not (slow or no_sanitizer or interchange)" --ignore tests/python/unit

tsan: setup  ## the C++ tests of the layers that run threads, under ThreadSanitizer
	@tools/build.sh tsan coord_test exec_test integrity_test net_test auth_test storage_test pipeline_test snapshot_test
	@tools/test.sh tsan cpp -R '^(coord|exec|integrity|net|auth|storage|pipeline|snapshot)$$'

torch-test: setup  ## the libtorch face, in build/torch: its tests, examples, interchange with Python, installation
	@tools/build.sh torch torch_tests torchsnapshot_package
	@tools/test.sh torch cpp -R '^torch$$'
	@tools/test.sh torch python tests/torch
	@tests/install/torch.sh build/torch

torch-asan: setup  ## the tests and examples of the libtorch face under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/build.sh torch torchsnapshot_package
	@tools/build.sh torch-asan torch_tests
	@tools/test.sh torch-asan cpp -R '^torch$$'
	@tools/test.sh torch-asan python tests/torch

lint: setup-lint  ## style, types, layers, clang-tidy
	@tools/lint.sh

lint-torch: setup-lint  ## clang-tidy on the libtorch face: some minutes
	@tools/lint.sh torch

format: setup-lint  ## bring the sources into shape
	@git ls-files --cached --others --exclude-standard -- '*.cc' '*.h' | xargs -r clang-format -i
	@.venv/bin/ruff check --fix . && .venv/bin/ruff format .

stubs: dev  ## renew the kept stub of the extension
	cp build/dev/python-build/_core.pyi python/torchsnapshot/_core.pyi

fuzz: setup-lint  ## the fuzzers, 10 minutes each
	@tools/fuzz.sh 600

install-test: setup  ## programs that use the installed C++ library, and the sources as a subproject
	@tests/install/cpp.sh

wheel-test: setup  ## pip install with build isolation, in an environment without torch
	@tests/install/wheel.sh

wheel: setup  ## a wheel of this tree, in dist/
	@.venv/bin/python -m pip wheel -q --no-deps -w dist . && ls -l dist

demo: release  ## the main job on real input: see demo/
	@PYTHONPATH=$(CURDIR)/build/release/python TORCHSNAPSHOT_BUILD=$(CURDIR)/build/release \
	  PATH="$(CURDIR)/.venv/bin:$$PATH" demo/run.sh

setup-bench:
	@tools/setup.sh --bench

bench: setup-bench  ## measurements against peers and limits (BENCH="few_large small" BENCH_GIB=4: see benchmarks/)
	@tools/build.sh release --configure-only -DTORCHSNAPSHOT_BUILD_BENCHMARKS=ON && tools/build.sh release
	@PYTHONPATH=$(CURDIR)/build/release/python .venv/bin/python benchmarks/run.py $(BENCH)

clean:  ## remove what was built (.venv stays)
	rm -rf build dist demo-out

.PHONY: help setup setup-lint setup-bench dev release test asan tsan torch-test torch-asan fuzz lint lint-torch format stubs install-test wheel-test wheel demo bench clean
