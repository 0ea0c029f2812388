"""Making, saving and loading reward models as plain `AutoModelForSequenceClassification` checkpoints.

A checkpoint is an ordinary transformers directory (config, safetensors, tokenizer) plus `reward_config.json`, so that
transformers, vLLM and anyone else's code can load it. Weights are read from safetensors only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.scale import check_k
from wildreward_ray.core.template import RewardTemplate
from wildreward_ray.reward.config import REWARD_CONFIG, RewardConfig
from wildreward_ray.reward.inputs import InputEncoder
from wildreward_ray.reward.pretrained import (
    HEAD,
    LOAD_ERRORS,
    check_max_length,
    has_head,
    load_config,
    load_tokenizer,
    load_weights,
    local_or_hub,
    max_positions,
    not_loadable,
    set_padding,
    torch_dtype,
    without_load_report,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class RewardCheckpoint:
    """A reward model ready to score.

    Attributes:
        model: sequence classifier with k-1 logits, in eval mode, on the CPU.
        tokenizer: its tokenizer, with a padding token, padding on the right.
        config: how inputs are built and logits are read.
        encoder: builds inputs as `config` says.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: RewardConfig
    encoder: InputEncoder


def load_base(
    base: str,
    k: int,
    *,
    seed: int = 0,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained model with a head of k-1 logits, new unless `base` is a reward model of k levels already.

    Args:
        base: local directory or Hugging Face name.
        k: number of ordered levels.
        seed: fixes the new head's weights; the caller's random state is left as it was.
        dtype: one of `pretrained.DTYPES`.
        trust_remote_code: let transformers run code that comes with `base`.
        attn_implementation: passed to transformers where given.

    Raises:
        UserError: `base` can't be loaded, has no sequence-classification form, has a head of another size, or its
            tokenizer has neither a padding nor an end-of-text token.
    """
    check_k(k)
    name = local_or_hub(base, "--base")
    config = load_config(name, "--base", trust_remote_code)
    if has_head(config) and config.num_labels != k - 1:
        raise UserError(
            f"{base!r} has a head of {config.num_labels} logits, {k} levels need {k - 1}",
            flag="--levels",
            hint="choose matching levels, or a base without a classification head",
        )
    tokenizer = load_tokenizer(name, "--base", trust_remote_code)
    labels = {j: f"y>{j + 1}" for j in range(k - 1)}
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with torch.random.fork_rng(devices=[]), without_load_report():
        torch.manual_seed(seed)
        model, info = load_weights(
            name,
            "--base",
            num_labels=k - 1,
            id2label=labels,
            label2id={label: j for j, label in labels.items()},
            problem_type="multi_label_classification",
            dtype=torch_dtype(dtype),
            trust_remote_code=trust_remote_code,
            **options,
        )
    # A new head, and for some architectures a new pooler, is expected. A body that stays random is not.
    missing, total = len(info["missing_keys"]), len(model.state_dict())
    if missing * 2 > total:
        raise UserError(f"{base!r} lacks {missing} of the {total} weights of a {type(model).__name__}", flag="--base")
    set_padding(model.config, tokenizer, "--base")
    return model, tokenizer


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: RewardConfig,
    directory: str | Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint into a local directory: safetensors, tokenizer, and `reward_config.json` last.

    Args:
        state_dict: the full weights where `model` holds only a shard of them.

    Raises:
        ValueError: the model's head doesn't have the k-1 logits that `config` promises.
    """
    if model.config.num_labels != config.levels - 1:
        raise ValueError(f"{model.config.num_labels} logits with a reward config of {config.levels} levels")
    model.save_pretrained(directory, **({} if state_dict is None else {"state_dict": dict(state_dict)}))
    tokenizer.save_pretrained(directory)
    config.save(directory)


def load_checkpoint(
    path: str,
    *,
    template_file: str | None = None,
    levels: int | None = None,
    max_length: int | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> RewardCheckpoint:
    """Load a reward model for scoring, in eval mode on the CPU.

    Args:
        path: local directory or Hugging Face name.
        template_file: Jinja file; required for a checkpoint without `reward_config.json`, such as the released ones.
        levels: number of levels k; required likewise.
        max_length: longest input in tokens, in place of the stored one.
        dtype: one of `pretrained.DTYPES`.

    Raises:
        UserError: see `load_reward_config_and_tokenizer`; or the weights lack something, e.g. the head. Such a model
            would load and score at random.
    """
    config, tokenizer = load_reward_config_and_tokenizer(
        path, template_file=template_file, levels=levels, max_length=max_length, trust_remote_code=trust_remote_code
    )
    model, info = load_weights(
        local_or_hub(path, "--model"), "--model", dtype=torch_dtype(dtype), trust_remote_code=trust_remote_code
    )
    if info["missing_keys"]:
        raise UserError(f"{path!r} lacks the weights {_some(info['missing_keys'])}", flag="--model")
    set_padding(model.config, tokenizer, "--model")
    model.eval()
    encoder = InputEncoder(tokenizer, RewardTemplate(config.template), config.max_length)
    return RewardCheckpoint(model=model, tokenizer=tokenizer, config=config, encoder=encoder)


def load_reward_config_and_tokenizer(
    path: str,
    *,
    template_file: str | None = None,
    levels: int | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[RewardConfig, PreTrainedTokenizerBase]:
    """Everything about a reward model but its weights, for engines that load those themselves.

    Arguments are those of `load_checkpoint`.

    Raises:
        UserError: the directory is missing; it has no `reward_config.json` and the template or the levels are not
            given; they are given and disagree with it; the logits don't match the levels; the length exceeds what the
            model can read; there is no padding token.
    """
    name = local_or_hub(path, "--model")
    hf_config = load_config(name, "--model", trust_remote_code)
    if not has_head(hf_config) and not trust_remote_code:
        raise UserError(
            f"{path!r} is a {_some(hf_config.architectures or ['model without architecture'])}, not a reward model",
            flag="--model",
            hint=f"a reward model is a ...{HEAD} checkpoint with levels - 1 logits",
        )
    stored = stored_reward_config(name)
    config = (
        _config_from_flags(path, template_file, levels, max_length or max_positions(hf_config) or 4096)
        if stored is None
        else _config_with_flags(stored, template_file, levels, max_length)
    )
    if hf_config.num_labels != config.levels - 1:
        raise UserError(
            f"{path!r} has {hf_config.num_labels} logits, {config.levels} levels need {config.levels - 1}",
            flag="--levels",
        )
    check_max_length(hf_config, config.max_length)
    tokenizer = load_tokenizer(name, "--model", trust_remote_code)
    set_padding(hf_config, tokenizer, "--model")
    return config, tokenizer


def read_template(path: str) -> str:
    """The template text in a file, without the newline that ends its last line.

    Editors add that newline and Jinja drops it by default; kept, it would become a token after every response.

    Raises:
        UserError: the file can't be read, is not UTF-8, or is not a usable reward template.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path!r} can't be read as text: {e}", flag="--template") from e
    return RewardTemplate(text.removesuffix("\n")).text


def _config_from_flags(path: str, template_file: str | None, levels: int | None, max_length: int) -> RewardConfig:
    if template_file is None or levels is None:
        absent = [flag for flag, given in (("--template", template_file), ("--levels", levels)) if given is None]
        raise UserError(
            f"{path!r} has no {REWARD_CONFIG}, so how its inputs are built and its logits are read is unknown",
            flag=" ".join(absent),
            hint="give the template it was trained with and its number of levels",
        )
    return RewardConfig(levels=check_k(levels), template=read_template(template_file), max_length=max_length)


def _config_with_flags(
    stored: RewardConfig, template_file: str | None, levels: int | None, max_length: int | None
) -> RewardConfig:
    if levels is not None and levels != stored.levels:
        raise UserError(f"{levels} levels, but {REWARD_CONFIG} says {stored.levels}", flag="--levels")
    if template_file is not None and read_template(template_file) != stored.template:
        raise UserError(
            f"the template in {template_file!r} is not the one that {REWARD_CONFIG} says the model was trained with",
            flag="--template",
            hint="leave the flag out",
        )
    return stored if max_length is None else stored.model_copy(update={"max_length": max_length})


def stored_reward_config(name: str) -> RewardConfig | None:
    """The `reward_config.json` of a local directory or a hub name; None where it has none.

    Raises:
        UserError: it can't be reached or read.
    """
    if os.path.isdir(name):
        return RewardConfig.load_if_present(name)
    try:
        return RewardConfig.load_file(hf_hub_download(name, REWARD_CONFIG))
    except LocalEntryNotFoundError as e:
        raise not_loadable(name, "--model", e) from e
    except EntryNotFoundError:
        return None
    except LOAD_ERRORS as e:
        raise not_loadable(name, "--model", e) from e


def _some(names: object) -> str:
    ordered = sorted(map(str, names)) if isinstance(names, (list, set, tuple)) else [str(names)]
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
