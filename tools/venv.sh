#!/bin/sh
# Make .venv and install the package with its development tools: sh tools/venv.sh [python]
set -eu
PYTHON=${1:-python3}
command -v "$PYTHON" >/dev/null || { echo "Python 3.10 or newer must be on the PATH, but there is no $PYTHON. On Debian: apt-get install python3 python3-venv" >&2; exit 1; }
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, but $PYTHON is $("$PYTHON" -V). Name another: make demo PYTHON=python3.11" >&2; exit 1; }
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    # Debian ships venv without pip until python3-venv is installed
    if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "Python's venv module is missing. Install it, then run make again: sudo apt-get install python3-venv" >&2; exit 1; }
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends python3-venv
    fi
    "$PYTHON" -m venv --clear .venv
fi
echo "Installing into .venv (once; a minute or two) ..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
