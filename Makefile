# Two commands do all the set-up: `make demo` and `make test`. Each makes its own .venv first.
PYTHON ?= python3
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
READY := .venv/ready
# where it is installed, it is several times as fast as pip
UV := $(shell command -v uv)

.PHONY: demo test soak notebooks student-notebooks

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
	FAST=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal  # FAST shortens notebooks

soak: $(READY)
	.venv/bin/python -m pytest -m slow

# Runs them in full and saves their pictures; results/ is made by notebooks/precompute*.py.
notebooks: $(READY)
	cd notebooks && for name in *.ipynb; do ../.venv/bin/python -m nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False $$name || exit 1; done
	.venv/bin/python notebooks/teachers_page.py

# In notebooks/student/: blanks for guesses and answers instead of reasons, solutions and outputs.
student-notebooks: $(READY)
	.venv/bin/python notebooks/student_copies.py

$(READY): requirements.txt pyproject.toml
ifeq ($(UV),)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
else
	$(UV) venv --quiet --seed --clear --python $(PYTHON) .venv
	$(UV) pip install --quiet --compile-bytecode --python .venv/bin/python -r requirements.txt
endif
	touch $(READY)
