"""Layouts of a model: what saves memory changes no gradient, and what a model can't do is said before it trains."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from wildreward_ray.core.config.train import LoraSection, OptimSection, ParallelSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.adapters import add_adapters, merge_adapters
from wildreward_ray.reward.optimizer import make_optimizer, rate_factor
from wildreward_ray.reward.parallel import lay_out, repeated_layers
from wildreward_ray.reward.training_state import whole_weights

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 2, 2]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    return BertForSequenceClassification(config)


def llama(dtype: torch.dtype = torch.float32) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=3,
        pad_token_id=2,
    )
    return LlamaForSequenceClassification(config).to(dtype)


def gradient(activation_checkpointing: bool, lora: bool) -> torch.Tensor:
    torch.manual_seed(0)
    model = add_adapters(bert(), LoraSection(rank=2)) if lora else bert()
    section = ParallelSection(activation_checkpointing=activation_checkpointing)
    layout = lay_out(model, section, device=CPU)
    model.train()
    torch.manual_seed(1)  # of dropout, which is drawn again in the second forward pass
    torch.autograd.backward(layout.logits(IDS, MASK).sum())
    found = [p.grad.reshape(-1) for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert len(found) == sum(p.requires_grad for p in model.parameters())
    return torch.cat(found)


@pytest.mark.parametrize("lora", [False, True])
def test_activations_computed_again_give_the_same_gradient_with_dropout_on(lora: bool) -> None:
    assert torch.allclose(gradient(True, lora), gradient(False, lora), atol=1e-6)


@pytest.mark.parametrize("model", [bert(), llama()])
def test_the_repeated_layers_are_those_of_the_transformer(model: nn.Module) -> None:
    layers = list(repeated_layers(model))
    assert len(layers) == {"BertForSequenceClassification": 3}.get(type(model).__name__, 2)
    assert len({type(layer) for layer in layers}) == 1


def test_a_model_without_layers_to_shard_by_is_refused_with_the_flag() -> None:
    with pytest.raises(UserError, match="no list of layers") as caught:
        lay_out(nn.Linear(2, 2), ParallelSection(strategy="fsdp2"), device=CPU)
    assert caught.value.flag == "--parallel.strategy"


def test_frozen_weights_may_be_bfloat16_and_what_is_trained_stays_float32() -> None:
    module = add_adapters(llama(torch.bfloat16), LoraSection(rank=2))
    layout = lay_out(module, ParallelSection(), device=CPU, bf16=True)
    assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in module.parameters() if not p.requires_grad} == {torch.bfloat16}
    torch.autograd.backward(layout.logits(IDS, MASK).float().sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)


def test_merged_adapters_give_the_logits_of_the_model_that_was_trained() -> None:
    section = LoraSection(rank=4, alpha=8)
    module = add_adapters(llama(), section)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    module.eval()
    trained = lay_out(module, ParallelSection(), device=CPU).logits(IDS, MASK)
    merged = merge_adapters(llama(), section, whole_weights(module)).eval()
    assert torch.allclose(merged(input_ids=IDS, attention_mask=MASK).logits, trained, atol=1e-5)
    assert not torch.allclose(llama().eval()(input_ids=IDS, attention_mask=MASK).logits, trained, atol=1e-2)


def test_adapters_on_layers_that_do_not_exist_are_refused_with_the_flag() -> None:
    with pytest.raises(UserError) as caught:
        add_adapters(llama(), LoraSection(rank=2, targets=("no_such_layer",)))
    assert caught.value.flag == "--lora.targets"


@pytest.mark.parametrize("lora", [False, True])
def test_the_head_has_its_own_rate_and_biases_and_norms_do_not_decay(lora: bool) -> None:
    model = bert()
    module = add_adapters(model, LoraSection(rank=2)) if lora else model
    section = OptimSection(learning_rate=1e-4, head_learning_rate=1e-3, weight_decay=0.1)
    groups = make_optimizer(module, "bert", section).param_groups
    rates = {id(p): (group["peak_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert set(rates) == {id(p) for p in trained.values()}
    for name, parameter in trained.items():
        head = "classifier" in name
        assert rates[id(parameter)] == (1e-3 if head else 1e-4, 0.1 if parameter.ndim >= 2 else 0.0), name
    assert groups[0]["peak_lr"] == 1e-4


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.002), ("linear", 0.027), ("constant", 1.0)])
def test_the_rate_rises_to_its_peak_and_falls_as_asked(schedule: str, last: float) -> None:
    section = OptimSection.model_validate({"schedule": schedule, "warmup_share": 0.1})
    factors = [rate_factor(section, step, 41) for step in range(41)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(factors) == 1.0
    assert factors[-1] == pytest.approx(last, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(factors[5:]))
