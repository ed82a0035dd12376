# make demo   train a small sweep on real text and read the answer (two or three minutes on two cores, after the install)
# make test   everything CI runs (about 25 minutes on two cores; as root it installs Chromium)
# make lab    JupyterLab on the quickstart
# make docs   the site, in _site/html; runs every page that has changed
# All four set themselves up in .venv; nothing is done twice.
# On Linux, pip's default torch brings CUDA. For a CPU machine: PIP_EXTRA_INDEX_URL=<PyTorch's CPU index> make demo

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-long lab docs dist prepare notebooks clean

demo: $(READY)
	$(BIN)/python tools/demo.py

lab: $(READY)
	$(BIN)/jupyter lab $$([ $$(id -u) != 0 ] || echo --allow-root) nbs/guides/quickstart.ipynb

test: $(READY)
	sh tools/browser.sh
	$(BIN)/python tools/check_tree.py
	$(BIN)/ruff check .
	$(BIN)/python tools/executed.py
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not long and not docs"
	$(BIN)/python -m pytest -n 0 -m docs tests/test_docs.py

# Before a release: more faults, clusters and commands, one after the other
test-long: $(READY)
	$(BIN)/python -m pytest -m long

docs: $(READY)
	$(BIN)/python tools/make_docs.py

# The wheel and the source archive, in dist/
dist: $(READY)
	$(BIN)/python -m build

# Before a commit: export the notebooks, clean them, write README.md
prepare: $(READY)
	$(BIN)/python tools/check_tree.py --write
	$(BIN)/ruff check .

# Run the library's notebooks in place, so that their stored outputs are today's
notebooks: $(READY)
	$(BIN)/python tools/run_nbs.py nbs/*.ipynb nbs/zoo/*.ipynb

$(READY): settings.ini constraints.txt setup.py tools/venv.sh
	sh tools/venv.sh "$(PYTHON)"
	touch $@

clean:
	rm -rf .venv build dist demo _site *.egg-info .pytest_cache .ruff_cache .hypothesis
