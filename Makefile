# Two commands do all the set-up: `make demo` and `make test`. Each makes its own .venv first.
PYTHON ?= python3
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
READY := .venv/ready

.PHONY: demo test test-code-1 test-code-2 test-code-3 test-notebooks soak notebooks

demo: $(READY)
	.venv/bin/python train.py --out $(RUN)
	.venv/bin/python sample.py $(RUN) --num-steps 1 --out $(RUN)/one-step.png
	.venv/bin/python sample.py $(RUN) --num-steps 4 --out $(RUN)/four-steps.png
	.venv/bin/python sample.py $(RUN) evaluate --num-steps 1 2 4
	.venv/bin/python sample.py checkpoints/fashion_mnist --out $(RUN)/clothes.png
	@echo "pictures: one-step.png, four-steps.png, and by the shipped model clothes.png, in $(RUN)"

test: $(READY)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	$(MAKE) -j2 test-code-1 test-code-2 test-notebooks test-code-3  # two at a time

# Each on one core; in this order two cores end at about the same time.
test-code-1: $(READY)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/test_[r-z]*.py

test-code-2: $(READY)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/test_[e-q]*.py

test-code-3: $(READY)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/test_[a-d]*.py

# FAST=1 shortens training.
test-notebooks: $(READY)
	FAST=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest notebooks

soak: $(READY)
	.venv/bin/python -m pytest -m slow

# Runs them in full and saves their pictures; results/ is made by notebooks/precompute*.py.
notebooks: $(READY)
	cd notebooks && for name in 0*.ipynb; do ../.venv/bin/python -m nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False $$name || exit 1; done
	.venv/bin/python notebooks/teachers_page.py

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch $(READY)
