# Everything a person or CI runs. Each target is a few lines in scripts/.
.PHONY: serve test test-full check docs format lock

serve:          ## set up if needed, fetch the demo model if needed, serve it on 127.0.0.1:8000 (PORT=, MODEL=, HOST=)
	@scripts/serve

test:           ## the fast suite
	@scripts/test

test-full:      ## everything, slow tests included
	@scripts/test-full

check:          ## format, lint, types, import rules, size budget, generated docs
	@scripts/check

docs:           ## regenerate docs/configuration.md
	@scripts/docs

format:         ## ruff: format and fix
	@scripts/format

lock:           ## pin requirements/ again from pyproject.toml
	@scripts/lock
