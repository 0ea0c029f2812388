"""Reward models of others: read as plain transformers reads them one at a time, and refused where that would be a guess."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.errors import RewardUnavailableError, UserError
from wildreward_ray.core.template import DEFAULT_TEMPLATE, Message
from wildreward_ray.reward.config import RewardConfig
from wildreward_ray.reward.foreign import ForeignScorer, load_foreign, load_foreign_inputs, positive_class, scores_of
from wildreward_ray.reward.foreign_inputs import ForeignEncoder
from wildreward_ray.reward.inputs import Item
from wildreward_ray.reward.model import load_base, save_checkpoint
from wildreward_ray.stages.evaluate_models import (
    check_model,
    finite_scores,
    load_response_encoder,
    load_response_scorer,
)
from wildreward_ray.stages.scoring import load_scorer

from .conftest import WORDS, word_tokenizer

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }} </s> {% endfor %}"
CHAT_WITH_BOS = "{{ bos_token }} " + CHAT
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('a conversation starts with user') }}{% endif %}" + CHAT
EOS, BOS = WORDS.index("</s>"), WORDS.index("<s>")
HISTORY: list[Message] = [
    {"role": "system", "content": "w1 w2"},
    {"role": "user", "content": "w3 w4 w5"},
    {"role": "assistant", "content": "w6 w7"},
]
ITEMS: list[Item] = [
    (HISTORY, "w10 w11", "w20 w21 w22"),
    ([], "w12", "w23"),
    ([], "w13 w14 w15", ""),
    ([], "w16", " ".join(f"w{i}" for i in range(100, 140))),
]


def chat_tokenizer(template: str | None = CHAT_WITH_BOS, wrap: str = "<s> $A") -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer(wrap, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def pair_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = word_tokenizer("[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    # What is saved are the arguments that a tokenizer was made with.
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    ids = [(token, WORDS.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return tokenizer


def save_llama(path: Path, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = LlamaConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=128,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.3,
        **{**sizes, **settings},
    )
    LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def scalar(tmp_path: Path) -> str:
    return save_llama(tmp_path / "scalar", chat_tokenizer(), num_labels=1)


@pytest.fixture
def two_class(tmp_path: Path) -> str:
    labels = {"id2label": {0: "Good", 1: "Bad"}, "label2id": {"Good": 0, "Bad": 1}}
    return save_llama(tmp_path / "two", chat_tokenizer(), **labels)


@pytest.fixture
def pair(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.3,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "pair")
    pair_tokenizer().save_pretrained(tmp_path / "pair")
    return str(tmp_path / "pair")


def encoder(tokenizer: PreTrainedTokenizerFast, max_length: int = 100, **settings: Any) -> ForeignEncoder:
    return ForeignEncoder(tokenizer, max_length=max_length, **settings)


def words(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def evaluate_config(model: str, **settings: Any) -> EvaluateConfig:
    asked = {"model": model, "benchmark": "pairs", "output": "unused", "engine": "transformers", **settings}
    return EvaluateConfig.model_validate(asked)


def plain_logits(path: str, inputs: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Each input by itself through the checkpoint as transformers loads it, untouched."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        rows = [model(**{name: torch.tensor([ids]) for name, ids in one.items()}).logits[0].numpy() for one in inputs]
    return np.stack(rows)


def chat_ids(tokenizer: PreTrainedTokenizerFast, item: Item) -> list[int]:
    history, prompt, response = item
    turn = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return list(tokenizer.apply_chat_template([*map(dict, history), *turn], return_dict=False))


def test_ids_are_those_of_the_tokenizers_chat_template() -> None:
    tokenizer = chat_tokenizer()
    assert encoder(tokenizer).encode_batch(ITEMS) == [chat_ids(tokenizer, item) for item in ITEMS]


@pytest.mark.parametrize("template", [CHAT, CHAT_WITH_BOS])
def test_bos_is_there_once_whoever_writes_it(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    for ids in encoder(tokenizer).encode_batch(ITEMS):
        assert ids[0] == BOS
        assert ids.count(BOS) == 1


def test_a_tokenizer_that_writes_no_bos_gets_none_and_no_end_is_added_behind_a_chat_template() -> None:
    tokenizer = chat_tokenizer(CHAT, wrap="$A </s>")
    assert (
        words(tokenizer, encoder(tokenizer).encode_batch([([], "w1", "w2")])[0]) == "user: w1 </s> assistant: w2 </s>"
    )


def test_the_oldest_messages_go_first_then_the_beginning_never_the_responses_end() -> None:
    tokenizer = chat_tokenizer()
    item: Item = (HISTORY, "w10 w11", "w20 w21 w22")
    end = "user: w10 w11 </s> assistant: w20 w21 w22 </s>"
    # Messages cost their words and two more; BOS is one.
    assert len(encoder(tokenizer).encode_batch([item])[0]) == 1 + 4 + 5 + 4 + 9
    for length, expected in [
        (22, f"<s> user: w3 w4 w5 </s> assistant: w6 w7 </s> {end}"),
        (17, f"<s> assistant: w6 w7 </s> {end}"),
        (10, f"<s> {end}"),
        (9, "<s> w10 w11 </s> assistant: w20 w21 w22 </s>"),
        (3, "<s> w22 </s>"),
    ]:
        assert words(tokenizer, encoder(tokenizer, length).encode_batch([item])[0]) == expected


def test_a_template_that_wants_a_user_first_loses_the_reply_with_its_question() -> None:
    tokenizer = chat_tokenizer(STRICT)
    item: Item = (HISTORY[1:], "w10 w11", "w20 w21 w22")
    ids = encoder(tokenizer, 18).encode_batch([item])[0]
    assert words(tokenizer, ids) == "<s> user: w10 w11 </s> assistant: w20 w21 w22 </s>"
    with pytest.raises(UserError, match=r"refuses a conversation of system, user.*starts with user.*--template"):
        encoder(tokenizer).encode_batch([(HISTORY, "w10", "w20")])


def test_a_chat_template_that_drops_the_response_is_refused() -> None:
    with pytest.raises(UserError, match=r"drops the response .*--template"):
        encoder(chat_tokenizer("{{ messages[0].content }}"))


def test_a_template_file_takes_the_place_of_the_chat_template(scalar: str, tmp_path: Path) -> None:
    file = tmp_path / "template"
    file.write_text("{{ prompt }} assistant: {{ response }}\n")
    inputs = load_foreign_inputs(scalar, template_file=str(file))
    assert inputs.encoder.form == "template"
    assert words(inputs.tokenizer, inputs.encoder.encode_batch([([], "w1", "w2")])[0]) == "<s> w1 assistant: w2"


def test_without_any_template_a_tokenizer_must_separate_prompt_and_response() -> None:
    with pytest.raises(UserError, match=r"puts nothing between .*--template"):
        encoder(chat_tokenizer(None))


def test_two_segments_are_the_tokenizers_own() -> None:
    tokenizer = pair_tokenizer()
    subject = encoder(tokenizer, with_types=True)
    for ids, (history, prompt, response) in zip(subject.encode_batch(ITEMS), ITEMS, strict=True):
        before = " ".join([*(one["content"] for one in history), prompt])
        own = tokenizer([before], [response], truncation=False, padding=False)
        assert ids == own["input_ids"][0]
        assert subject.token_types(ids) == own["token_type_ids"][0]


def test_a_separator_in_a_text_does_not_end_its_segment() -> None:
    subject = encoder(pair_tokenizer(), with_types=True)
    odd, plain = subject.encode_batch([([], "w1 [SEP] w2", "w3 [SEP] [CLS]"), ([], "w1 w2", "w3")])
    assert odd == plain
    assert subject.token_types(odd) == [0, 0, 0, 0, 1, 1]


def test_two_segments_are_cut_from_the_oldest_and_keep_the_responses_end() -> None:
    tokenizer = pair_tokenizer()
    for length, expected in [
        (14, "[CLS] w3 w4 w5 w6 w7 w10 w11 [SEP] w20 w21 w22 [SEP]"),
        (11, "[CLS] w6 w7 w10 w11 [SEP] w20 w21 w22 [SEP]"),
        (7, "[CLS] w11 [SEP] w20 w21 w22 [SEP]"),
        (5, "[CLS] [SEP] w21 w22 [SEP]"),
    ]:
        subject = encoder(tokenizer, length, with_types=True)
        ids = subject.encode_batch([(HISTORY, "w10 w11", "w20 w21 w22")])[0]
        assert words(tokenizer, ids) == expected
        assert subject.token_types(ids) == [0] * (ids.index(tokenizer.sep_token_id) + 1) + [1] * expected.count(
            "w2"
        ) + [1]


@pytest.mark.parametrize("pad", [None, EOS, WORDS.index("[PAD]")])
@pytest.mark.parametrize("labels", [1, 2])
def test_logits_of_a_batch_are_those_of_the_plain_model_one_at_a_time(tmp_path: Path, pad: int, labels: int) -> None:
    """All inputs end in EOS, which is the tokenizer's padding too, and to some models means padding and to others a token."""
    path = save_llama(tmp_path / "model", chat_tokenizer(), num_labels=labels, pad_token_id=pad)
    inputs = load_foreign_inputs(path)
    encoded = inputs.encoder.encode_batch(ITEMS)
    expected = plain_logits(path, [{"input_ids": chat_ids(inputs.tokenizer, item)} for item in ITEMS])
    for budget in (8192, 60):
        found = ForeignScorer(load_foreign(path, inputs), device="cpu", token_budget=budget).logits(encoded)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected[:, 0]) > 0.1


def test_two_segments_score_as_the_plain_model_with_token_types(pair: str) -> None:
    inputs = load_foreign_inputs(pair)
    own = AutoTokenizer.from_pretrained(pair)
    before = [" ".join([*(one["content"] for one in history), prompt]) for history, prompt, _ in ITEMS]
    both = own(before, [response for _, _, response in ITEMS], truncation=False, padding=False)
    asked = [{name: both[name][i] for name in ("input_ids", "token_type_ids")} for i in range(len(ITEMS))]
    found = ForeignScorer(load_foreign(pair, inputs), device="cpu").logits(inputs.encoder.encode_batch(ITEMS))
    np.testing.assert_allclose(found, plain_logits(pair, asked), atol=1e-5)
    untyped = plain_logits(pair, [{"input_ids": one["input_ids"]} for one in asked])
    assert np.abs(found - untyped).max() > 1e-3


@pytest.mark.parametrize(
    ("labels", "good"),
    [
        (("LABEL_0", "LABEL_1"), 1),
        (("NEGATIVE", "POSITIVE"), 1),
        (("Positive", "Negative"), 0),
        (("chosen", "rejected"), 0),
        (("this", "bad"), 0),
        (("that", "those"), 1),
        (("good", "chosen"), 1),
    ],
)
def test_the_good_class_is_the_one_with_the_good_name(labels: tuple[str, str], good: int) -> None:
    assert positive_class(dict(enumerate(labels))) == good


def test_the_score_is_the_logit_or_the_lead_of_the_good_class() -> None:
    one = np.array([[1.5], [-2.0]], dtype=np.float32)
    assert scores_of(one, "scalar", 0).tolist() == [1.5, -2.0]
    two = np.array([[1.5, 0.5], [np.inf, np.inf]], dtype=np.float32)
    assert scores_of(two, "two-class", 1)[0] == -1.0
    assert scores_of(two, "two-class", 0)[0] == 1.0
    assert isinstance(finite_scores(two, "two-class", 0)[1], RewardUnavailableError)


@pytest.mark.parametrize("name", ["scalar", "two_class", "pair"])
def test_what_is_checked_is_what_is_loaded(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    config = evaluate_config(path)
    said, loaded = check_model(config), load_response_scorer(config)
    for key in ("kind", "engine", "version", "levels", "max_length"):
        assert said[key] == getattr(loaded, key)
    assert said["kind"] == ("two-class" if name == "two_class" else "scalar")
    assert said.get("positive") == ("Good" if name == "two_class" else None)
    assert said["input"] == ("two segments" if name == "pair" else "chat template")
    encoded = loaded.encode(ITEMS)
    assert load_response_encoder(config).encode(ITEMS) == encoded
    scores = loaded.score(encoded)
    if name == "two_class":
        logits = plain_logits(path, [{"input_ids": ids} for ids in encoded])
        assert scores == pytest.approx((logits[:, 0] - logits[:, 1]).tolist(), abs=1e-5)
    assert loaded.score([]) == []


def test_a_nan_is_an_error_of_its_own_response_only(scalar: str) -> None:
    file = Path(scalar) / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][WORDS.index("w23")] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    loaded = load_response_scorer(evaluate_config(scalar))
    first, broken, *others = loaded.score(loaded.encode(ITEMS))
    assert isinstance(broken, RewardUnavailableError)
    assert "nan" in str(broken)
    assert all(isinstance(one, float) for one in (first, *others))


def test_a_model_of_this_project_scores_as_ever(llama_base: str, tmp_path: Path) -> None:
    model, tokenizer = load_base(llama_base, 2)
    own = RewardConfig(levels=2, template=DEFAULT_TEMPLATE, max_length=100)
    save_checkpoint(model, tokenizer, own, tmp_path / "own")
    config = evaluate_config(str(tmp_path / "own"))
    loaded, scorer = load_response_scorer(config), load_scorer(config)
    encoded = loaded.encode(ITEMS)
    assert encoded == scorer.encoder.encode_batch(ITEMS) == load_response_encoder(config).encode(ITEMS)
    assert loaded.score(encoded) == scorer.score(encoded).score.tolist()
    said = check_model(config)
    assert (said["kind"], said["levels"], said["max_length"]) == ("ordinal", 2, 100)
    with pytest.raises(UserError, match=r"reward_config.json, which says how to read it.*--model-kind"):
        check_model(evaluate_config(str(tmp_path / "own"), model_kind="scalar"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_kind": "two-class"}, r"has 1 logits, two-class is 2 .*--model-kind"),
        ({"model_kind": "scalar", "levels": 2}, r"2 levels of a scalar model.*--levels"),
        ({"calibrated": True}, r"no calibration to apply .*--calibrated"),
        ({"model_kind": "ordinal"}, r"--template --levels"),
        ({"levels": 4}, r"--template"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_before_it_is_loaded(
    scalar: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check_model(evaluate_config(scalar, **settings))


def test_two_segments_are_refused_by_vllm_and_go_to_transformers_by_themselves(pair: str) -> None:
    with pytest.raises(UserError, match=r"two segments.*--engine"):
        check_model(evaluate_config(pair, engine="vllm"))
    assert check_model(evaluate_config(pair, engine="auto"))["engine"] == "transformers"


def test_another_number_of_logits_needs_levels(tmp_path: Path) -> None:
    path = save_llama(tmp_path / "model", chat_tokenizer(), num_labels=3)
    with pytest.raises(UserError, match=r"has 3 logits.*--levels 4 .*--model-kind"):
        check_model(evaluate_config(path))


def test_a_model_without_a_trained_head_is_refused(llama_base: str, scalar: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"LlamaForCausalLM, not a reward model.*--model"):
        check_model(evaluate_config(llama_base))
    shutil.copytree(scalar, tmp_path / "headless")
    file = tmp_path / "headless" / "model.safetensors"
    weights = load_file(file)
    del weights["score.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the weights score.weight"):
        load_response_scorer(evaluate_config(str(tmp_path / "headless")))


def test_the_longest_input_is_what_the_model_reads_up_to_a_bound(scalar: str) -> None:
    assert check_model(evaluate_config(scalar))["max_length"] == 128
    file = Path(scalar) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 131072}))
    assert check_model(evaluate_config(scalar))["max_length"] == 16384
