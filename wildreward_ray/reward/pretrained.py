"""Loading configurations, tokenizers and weights through transformers, with errors that name the value and the flag."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from wildreward_ray.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")
HEAD = "ForSequenceClassification"
_AUTO_CLASS = AutoModelForSequenceClassification.__name__
# What transformers, safetensors and torch raise for a directory that can't be loaded.
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Their position table starts after the padding index: https://github.com/huggingface/transformers/issues/15292
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod"}


def local_or_hub(name: str, flag: str) -> str:
    """A local directory with `~` expanded, or `name` where it can be a Hugging Face name. Else `UserError`."""
    local = os.path.expanduser(name)
    if os.path.isdir(local):
        return local
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise UserError(f"{name!r} is not a directory", flag=flag)
    return name


def load_config(name: str, flag: str, trust_remote_code: bool) -> PretrainedConfig:
    """The model configuration of `name`. Raises `UserError` naming `flag`."""
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as e:
        raise not_loadable(name, flag, e) from e


def load_tokenizer(name: str, flag: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`, padding on the right. Raises `UserError` naming `flag`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except LOAD_ERRORS as e:
        raise not_loadable(f"{name} (tokenizer)", flag, e) from e
    # Sequence classifiers of decoders read the last token that is not padding; left padding would move positions too.
    tokenizer.padding_side = "right"
    return tokenizer


def load_weights(name: str, flag: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The sequence classifier of `name`, safetensors only, and which weights it lacked. Raises `UserError`."""
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **options
        )
    except LOAD_ERRORS as e:
        if "Unrecognized configuration class" in str(e):
            raise UserError(
                f"{name!r}: transformers has no sequence-classification form of this architecture", flag=flag
            ) from e
        raise not_loadable(name, flag, e) from e
    return model, info


def check_classifier(hf_config: PretrainedConfig, name: str, flag: str) -> None:
    """Raise `UserError` if transformers has no sequence classifier of the architecture, nor does `name` bring its own."""
    own = getattr(hf_config, "auto_map", None) or {}
    if type(hf_config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and _AUTO_CLASS not in own:
        raise UserError(f"{name!r}: transformers has no sequence-classification form of this architecture", flag=flag)


def not_loadable(name: str, flag: str, error: BaseException) -> UserError:
    """The error to raise when a library could not load `name`: its reason, cut to the first line."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    where = "" if os.path.isdir(name) else "it is not a directory here and the Hugging Face hub said: "
    return UserError(f"{name!r} can't be loaded: {where}{reason}", flag=flag)


def set_padding(hf_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, flag: str) -> None:
    """Give tokenizer and model one padding token. End-of-text serves where there is none: no weights are added.

    Raises:
        UserError: the tokenizer has neither.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError("the tokenizer has neither a padding nor an end-of-text token", flag=flag)
        tokenizer.pad_token = tokenizer.eos_token
    hf_config.pad_token_id = tokenizer.pad_token_id
    hf_config.get_text_config().pad_token_id = tokenizer.pad_token_id


def has_head(hf_config: PretrainedConfig) -> bool:
    """Whether the weights were saved from a sequence classifier, so that the head is trained and not new."""
    return any(name.endswith(HEAD) for name in hf_config.architectures or [])


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of one of `DTYPES`, else `UserError`."""
    if name not in DTYPES:
        raise UserError(f"dtype {name!r}: known are {', '.join(DTYPES)}", flag="--dtype")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def max_positions(hf_config: PretrainedConfig) -> int | None:
    """The longest input in tokens that a model can read, or None where its configuration sets no limit."""
    text = hf_config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    if text.model_type in _OFFSET_POSITIONS:
        limit -= (text.pad_token_id or 0) + 1
    return limit


def check_max_length(hf_config: PretrainedConfig, max_length: int) -> None:
    """Raise `UserError` if inputs of `max_length` tokens are longer than the model can read."""
    limit = max_positions(hf_config)
    if limit is not None and max_length > limit:
        raise UserError(f"a length of {max_length} tokens: the model reads at most {limit}", flag="--max-length")


@contextmanager
def without_load_report() -> Iterator[None]:
    """Silence transformers' report that the head is new: here it is meant to be."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
