"""Reward checkpoints: what is saved is what is loaded, anywhere, and what can't be read is refused by name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, MambaConfig, PreTrainedTokenizerFast

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import DEFAULT_TEMPLATE
from wildreward_ray.reward.config import REWARD_CONFIG, Calibration, RewardConfig
from wildreward_ray.reward.engine import TransformersScorer, pad_right
from wildreward_ray.reward.model import (
    load_base,
    load_checkpoint,
    load_reward_config_and_tokenizer,
    save_checkpoint,
)

CONFIG = RewardConfig(levels=4, template=DEFAULT_TEMPLATE, max_length=100, lineage={"base": "tiny"})
INPUTS = [[7, 8, 9], [10 + i for i in range(40)], [50], [60, 61, 62, 63, 64]]


@pytest.fixture(params=["bert", "llama"])
def base(request: pytest.FixtureRequest, bert_base: str, llama_base: str) -> str:
    return bert_base if request.param == "bert" else llama_base


@pytest.fixture
def saved(base: str, tmp_path: Path) -> Path:
    model, tokenizer = load_base(base, 4)
    save_checkpoint(model, tokenizer, CONFIG, tmp_path / "model")
    return tmp_path / "model"


def released(saved: Path) -> Path:
    """The checkpoint as the WildReward authors publish theirs: without `reward_config.json`."""
    (saved / REWARD_CONFIG).unlink()
    return saved


def test_save_and_load_give_identical_logits(base: str, tmp_path: Path) -> None:
    model, tokenizer = load_base(base, 4)
    save_checkpoint(model, tokenizer, CONFIG, tmp_path)
    ids, mask = pad_right(INPUTS, tokenizer.pad_token_id)
    loaded = load_checkpoint(str(tmp_path))
    with torch.inference_mode():
        before = model(input_ids=ids, attention_mask=mask).logits
        after = loaded.model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(before, after)
    assert before.shape == (4, 3)
    assert loaded.config == CONFIG


def test_plain_transformers_loads_the_checkpoint(saved: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    ours = load_checkpoint(str(saved))
    assert plain.config.problem_type == "multi_label_classification"
    assert plain.config.id2label == {0: "y>1", 1: "y>2", 2: "y>3"}
    assert plain.config.pad_token_id == ours.tokenizer.pad_token_id
    with torch.inference_mode():
        ids = torch.tensor([INPUTS[1]])
        assert torch.equal(plain(ids).logits, ours.model(ids).logits)


def test_only_safetensors_are_written(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", REWARD_CONFIG} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".partial"))]


def test_pickled_weights_are_never_read(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({}, saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"safetensors.*--model"):
        load_checkpoint(str(saved))


def test_the_seed_fixes_the_head_and_leaves_the_callers_random_state(base: str) -> None:
    def head(seed: int) -> torch.Tensor:
        model, _ = load_base(base, 4, seed=seed)
        tensor: torch.Tensor = next(
            p for name, p in model.named_parameters() if name.endswith(("score.weight", "classifier.weight"))
        )
        return tensor

    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    first = head(0)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, head(0))
    assert not torch.equal(first, head(1))


def test_a_decoder_without_padding_token_pads_with_end_of_text(llama_base: str) -> None:
    model, tokenizer = load_base(llama_base, 4)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id
    assert tokenizer.padding_side == "right"


def test_a_tokenizer_with_neither_padding_nor_end_of_text_is_refused(llama_base: str, tmp_path: Path) -> None:
    shutil.copytree(llama_base, tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "eos_token"}))
    with pytest.raises(UserError, match=r"neither a padding nor an end-of-text token.*--base"):
        load_base(str(tmp_path / "base"), 4)


@pytest.mark.parametrize("name", ["/no/such/dir", "./no-such-dir", "s3://bucket/model"])
def test_a_missing_directory_is_named_with_its_flag(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}.*--base"):
        load_base(name, 4)
    with pytest.raises(UserError, match=rf"{name}.*--model"):
        load_checkpoint(name)


def test_a_directory_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}.*--base"):
        load_base(str(tmp_path), 4)


def test_an_architecture_without_a_classification_form_is_refused(
    tmp_path: Path, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    MambaConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    llama_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no sequence-classification form.*--base"):
        load_base(str(tmp_path), 4)


def test_a_base_whose_body_would_stay_random_is_refused(bert_base: str, tmp_path: Path) -> None:
    shutil.copytree(bert_base, tmp_path / "base")
    save_file({"unrelated": torch.zeros(1)}, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks \d+ of the \d+ weights.*--base"):
        load_base(str(tmp_path / "base"), 4)


@pytest.mark.parametrize("k", [1, 11])
def test_levels_outside_the_scale_are_refused(bert_base: str, k: int) -> None:
    with pytest.raises(UserError, match="--levels"):
        load_base(bert_base, k)


def test_an_unknown_dtype_is_refused(bert_base: str) -> None:
    with pytest.raises(UserError, match=r"float8.*--dtype"):
        load_base(bert_base, 4, dtype="float8")


def test_training_goes_on_from_a_reward_model_but_not_with_other_levels(saved: Path) -> None:
    model, _ = load_base(str(saved), 4, seed=99)
    trained = load_checkpoint(str(saved)).model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    with pytest.raises(UserError, match=r"3 logits, 3 levels need 2.*--levels"):
        load_base(str(saved), 3)


def test_a_checkpoint_without_reward_config_needs_template_and_levels(saved: Path, tmp_path: Path) -> None:
    path = str(released(saved))
    template = tmp_path / "t.jinja"
    # Editors end the last line; that newline must not become a token behind every response.
    template.write_text("{{ prompt }} / {{ response }}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"--template --levels"):
        load_checkpoint(path)
    with pytest.raises(UserError, match=r"\(--levels\)"):
        load_checkpoint(path, template_file=str(template))
    with pytest.raises(UserError, match=r"3 logits, 5 levels need 4.*--levels"):
        load_checkpoint(path, template_file=str(template), levels=5)
    loaded = load_checkpoint(path, template_file=str(template), levels=4, max_length=50)
    assert loaded.config == RewardConfig(levels=4, template="{{ prompt }} / {{ response }}", max_length=50)


def test_flags_that_disagree_with_the_reward_config_are_refused(saved: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ prompt }} / {{ response }}", encoding="utf-8")
    with pytest.raises(UserError, match="--template"):
        load_checkpoint(str(saved), template_file=str(template))
    with pytest.raises(UserError, match="--levels"):
        load_checkpoint(str(saved), levels=5)
    template.write_text(DEFAULT_TEMPLATE, encoding="utf-8")
    assert load_checkpoint(str(saved), template_file=str(template), levels=4).config == CONFIG


def test_a_length_beyond_the_models_positions_is_refused(saved: Path) -> None:
    assert load_checkpoint(str(saved), max_length=128).encoder.max_length == 128
    with pytest.raises(UserError, match=r"129 tokens: the model reads at most 128.*--max-length"):
        load_checkpoint(str(saved), max_length=129)


def test_a_language_model_is_not_taken_for_a_reward_model(llama_base: str, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(DEFAULT_TEMPLATE, encoding="utf-8")
    with pytest.raises(UserError, match=r"LlamaForCausalLM, not a reward model.*--model"):
        load_checkpoint(llama_base, template_file=str(template), levels=3)


def test_weights_without_the_head_are_refused_instead_of_scoring_at_random(llama_base: str, tmp_path: Path) -> None:
    shutil.copytree(llama_base, tmp_path / "model")
    CONFIG.save(tmp_path / "model")
    config = LlamaConfig.from_pretrained(llama_base, num_labels=3, architectures=["LlamaForSequenceClassification"])
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"lacks the weights score\.weight.*--model"):
        load_checkpoint(str(tmp_path / "model"))


def test_config_and_tokenizer_load_without_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    config, tokenizer = load_reward_config_and_tokenizer(str(saved))
    assert config == CONFIG
    assert tokenizer.pad_token_id is not None


@pytest.mark.parametrize(
    "change",
    [{"decoder": "softmax"}, {"levels": 1}, {"score_range": [0, 1]}, {"format_version": 2}, {"surprise": 1}],
)
def test_a_reward_config_that_cannot_be_followed_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = CONFIG.save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=next(iter(change))):
        RewardConfig.load(tmp_path)


def test_reward_config_round_trips_and_may_be_absent(tmp_path: Path) -> None:
    assert RewardConfig.load_if_present(tmp_path) is None
    fitted = Calibration(method="platt", scale=(0.1 + 0.2, 1.0, 2.0), shift=(-1 / 3, 0.0, 1e-9), rows=77)
    config = CONFIG.model_copy(update={"decoder": "corn", "calibration": fitted})
    config.save(tmp_path)
    assert RewardConfig.load(tmp_path) == config
    assert config.score_range == (1.0, 4.0)


def test_scores_are_read_through_the_decoder_and_after_the_calibration_where_it_is_asked_for() -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    logits = np.array([[2.0, -1.0, 0.5]], dtype=np.float32)
    fitted = Calibration(method="platt", scale=(0.5, 2.0, 1.0), shift=(1.0, 0.0, -0.5), rows=9)
    plain = [sigmoid(2.0), sigmoid(-1.0), sigmoid(0.5)]
    corrected = [sigmoid(2.0), sigmoid(-2.0), sigmoid(0.0)]
    for calibration, p in ((None, plain), (fitted, corrected)):
        for decoder, expected in (("cumulative", p), ("corn", [p[0], p[0] * p[1], p[0] * p[1] * p[2]])):
            config = CONFIG.model_copy(update={"decoder": decoder, "calibration": calibration})
            np.testing.assert_allclose(config.p_gt(logits, calibrated=True), [expected], rtol=1e-12)
    # Unless it is asked for, the reward is that of any program that loads the checkpoint.
    stored = CONFIG.model_copy(update={"calibration": fitted})
    np.testing.assert_allclose(stored.p_gt(logits), [plain], rtol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (1.0, 0.0, 1.0)},
        {"scale": (1.0, math.inf, 1.0)},
        {"shift": (0.0, math.nan, 0.0)},
        {"shift": (0.0, 0.0)},
        {"rows": 0},
        {"method": "temperature", "scale": (1.0, 2.0, 1.0)},
        {"method": "temperature", "shift": (0.0, 1.0, 0.0)},
    ],
)
def test_a_calibration_that_cannot_be_followed_is_refused(change: dict[str, object]) -> None:
    whole = {"method": "platt", "scale": (1.0, 1.0, 1.0), "shift": (0.0, 0.0, 0.0), "rows": 5}
    Calibration.model_validate(whole)
    with pytest.raises(ValidationError):
        Calibration.model_validate({**whole, **change})


def test_a_calibration_of_another_number_of_levels_is_refused(tmp_path: Path) -> None:
    path = CONFIG.save(tmp_path)
    short = {"method": "platt", "scale": [1.0, 1.0], "shift": [0.0, 0.0], "rows": 5}
    path.write_text(json.dumps({**json.loads(path.read_text()), "calibration": short}))
    with pytest.raises(UserError, match="calibration of 2 thresholds for 4 levels"):
        RewardConfig.load(tmp_path)


@pytest.mark.parametrize("budget", [1, 50, 10_000])
def test_scores_keep_input_order_and_ignore_neighbours(saved: Path, budget: int) -> None:
    checkpoint = load_checkpoint(str(saved))
    together = TransformersScorer(checkpoint, device="cpu", token_budget=budget).logits(INPUTS)
    alone = [checkpoint.model(torch.tensor([ids])).logits[0].detach().numpy() for ids in INPUTS]
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_scoring_nothing_gives_no_rows(saved: Path) -> None:
    assert TransformersScorer(load_checkpoint(str(saved)), device="cpu").logits([]).shape == (0, 3)


def test_a_device_that_is_not_here_is_the_users_error(saved: Path) -> None:
    with pytest.raises(UserError, match=r"warp:0.*--device"):
        TransformersScorer(load_checkpoint(str(saved)), device="warp:0")
