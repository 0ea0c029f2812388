"""Loss and gradient of a batch of pairs are those of TRL's DPO trainer, on the same weights and token ids."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wildreward_ray.policy.dpo import PairBatch, collate_pairs, dpo_loss, sequence_logprobs
from wildreward_ray.policy.pairs import Pair, Sample

trl = pytest.importorskip("trl", reason="TRL is not installed")

BETA = 0.3
PROMPTS = [(3, 4, 5), (6, 7), (8, 9, 10, 11)]
# Chosen replies of one length: TRL's NLL is a mean over a batch's tokens, ours a mean over replies.
CHOSEN = [(20, 21, 22), (23, 24, 25), (26, 27, 28)]
REJECTED = [(30, 31), (32, 33, 34, 35), (36,)]


def policies() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A policy and a reference that differ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    policy = LlamaForCausalLM(config)
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return policy, reference


def pair_batch() -> PairBatch:
    pairs = [
        Pair(i, Sample("good", good, True), Sample("bad", bad, True), 2.0, 1.0)
        for i, (good, bad) in enumerate(zip(CHOSEN, REJECTED, strict=True))
    ]
    return collate_pairs(PROMPTS, pairs, 0)


def of_trl(folder: Path, loss_types: list[str], weights: list[float]) -> tuple[float, dict[str, Tensor]]:
    """TRL's loss and gradients."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"t{i}": i for i in range(64)}, unk_token="t0")),
        pad_token="t0",
        eos_token="t2",
    )
    policy, reference = policies()
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=trl.DPOConfig(
            output_dir=str(folder),
            beta=BETA,
            loss_type=loss_types,
            loss_weights=weights,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_dropout=True,
            report_to=[],
        ),
        train_dataset=Dataset.from_dict({"prompt": ["t3"], "chosen": ["t4"], "rejected": ["t5"]}),
        processing_class=tokenizer,
    )
    batch = pair_batch()
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "completion_mask": batch.response_mask.long(),
    }
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return float(loss.detach()), gradients(policy)


def gradients(policy: LlamaForCausalLM) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def of_ours(**settings: Any) -> tuple[float, dict[str, Tensor]]:
    """The same of this package."""
    policy, reference = policies()
    batch = pair_batch()

    def logprobs(model: LlamaForCausalLM) -> Tensor:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return sequence_logprobs(logits, batch.input_ids, batch.response_mask)

    with torch.no_grad():
        ref_chosen, ref_rejected = logprobs(reference).chunk(2)
    chosen, rejected = logprobs(policy).chunk(2)
    chosen_tokens, rejected_tokens = batch.response_tokens().chunk(2)
    out = dpo_loss(
        chosen,
        rejected,
        ref_chosen,
        ref_rejected,
        beta=BETA,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        **settings,
    )
    loss = out.loss.mean()
    torch.autograd.backward(loss)
    return float(loss.detach()), gradients(policy)


@pytest.mark.parametrize(
    ("loss_types", "weights", "settings"),
    [
        (["sigmoid"], [1.0], {"loss_type": "sigmoid"}),
        (["sigmoid_norm"], [1.0], {"loss_type": "sigmoid", "length_normalized": True}),
        # TRL divides the log-ratios of IPO by the replies' lengths; the paper does not, and neither do we unless told.
        (["ipo"], [1.0], {"loss_type": "ipo", "length_normalized": True}),
        (["sigmoid", "sft"], [1.0, 0.5], {"loss_type": "sigmoid", "nll_weight": 0.5}),
    ],
    ids=["sigmoid", "length-normalized", "ipo", "nll"],
)
def test_loss_and_gradient_are_those_of_trl(
    loss_types: list[str], weights: list[float], settings: dict[str, Any], tmp_path: Path
) -> None:
    theirs, their_gradients = of_trl(tmp_path, loss_types, weights)
    ours, our_gradients = of_ours(**settings)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-3, atol=1e-6)
