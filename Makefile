# make demo   the three scripts on a synthetic sample in demo/, on any machine, in minutes
# make test   style check and tests

PYTHON ?= python3
# Windows puts the programs of a virtual environment elsewhere
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: demo test

# its batches would be large for several GPUs
demo: export CUDA_VISIBLE_DEVICES ?= 0
demo: .venv/run
	mkdir -p demo
	cd demo && ../$(BIN)/python ../prepare_dataset.py --sample
	cd demo && ../$(BIN)/python ../train_distributed.py --no-pretrained --image-size 64 --epochs 12 --lr 0.001
	cd demo && ../$(BIN)/python ../distributed_inference.py --pred-batch-size 12

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# each file marks an installed list of requirements
.venv/run: requirements.txt
.venv/test: tests/requirements.txt requirements.txt
.venv/%:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement $<
	touch $@
