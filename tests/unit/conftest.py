"""Tiny random models and word tokenizers, built here: unit tests download nothing and take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>")
WORDS = [*SPECIAL, "user:", "assistant:", *(f"w{i}" for i in range(300))]


def word_tokenizer(wrap: str, **special: str) -> PreTrainedTokenizerFast:
    """One token a word. Like many published tokenizers it carries truncation and padding settings of its own."""
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    used = [(token, WORDS.index(token)) for token in SPECIAL if token in wrap]
    backend.post_processor = TemplateProcessing(single=wrap, special_tokens=used)
    backend.enable_truncation(12)
    if "pad_token" in special:
        backend.enable_padding(length=12, pad_token=special["pad_token"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special)


@pytest.fixture(scope="session")
def bert_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer("[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


@pytest.fixture(scope="session")
def llama_tokenizer() -> PreTrainedTokenizerFast:
    """BOS in front, end-of-text behind, and no padding token, so that end-of-text has to serve as one."""
    return word_tokenizer("<s> $A </s>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def bert_base(tmp_path_factory: pytest.TempPathFactory, bert_tokenizer: PreTrainedTokenizerFast) -> str:
    """An encoder without a head."""
    path: Path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(path)
    bert_tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer: PreTrainedTokenizerFast) -> str:
    """A decoder language model."""
    path: Path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        bos_token_id=WORDS.index("<s>"),
        eos_token_id=WORDS.index("</s>"),
    )
    LlamaForCausalLM(config).save_pretrained(path)
    llama_tokenizer.save_pretrained(path)
    return str(path)
