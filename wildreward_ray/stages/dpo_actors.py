"""The two kinds of actors of an online DPO run: one samples from the policy, one improves it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.storage import Location, upload
from wildreward_ray.cluster.vllm_engine import start_llm
from wildreward_ray.cluster.weights import EXTENSION, load_weights, unique_tensors
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig, RolloutSection
from wildreward_ray.policy.learner import Learner
from wildreward_ray.policy.pairs import Pair, Sample


@ray.remote
class RolloutActor:
    """Samples replies with vLLM and takes over new weights."""

    def __init__(self, policy: str, section: RolloutSection, seed: int) -> None:
        self._section, self._seed = section, seed
        self._llm = start_llm(policy, section.engine, flag="--policy", seed=seed, worker_extension_cls=EXTENSION)
        self.version = 0

    def sample(self, prompts: Sequence[Sequence[int]], samples: int, seed: int) -> dict[str, Any]:
        """Sample `samples` replies a prompt.

        Returns:
            `samples`: list of `Sample` a prompt; `tokens` sampled; `seconds`; `version` of the weights.
        """
        from vllm import SamplingParams

        started = time.monotonic()
        section = self._section
        params = [
            SamplingParams(
                n=samples,
                max_tokens=section.max_tokens,
                temperature=section.temperature,
                top_p=section.top_p,
                seed=hash((self._seed, seed, i)) & 0x7FFFFFFF,
            )
            for i in range(len(prompts))
        ]
        outputs = self._llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)
        groups = [
            [Sample(c.text, tuple(c.token_ids), c.finish_reason == "stop") for c in output.outputs]
            for output in outputs
        ]
        tokens = sum(len(s.token_ids) for group in groups for s in group)
        return {"samples": groups, "tokens": tokens, "seconds": time.monotonic() - started, "version": self.version}

    def load(self, weights: dict[str, torch.Tensor], version: int) -> float:
        """Take over new weights. Returns seconds."""
        started = time.monotonic()
        load_weights(self._llm, weights)
        self.version = version
        return time.monotonic() - started


@ray.remote
class LearnerActor:
    """Holds the policy that learns, and its reference."""

    def __init__(self, config: OnlineDpoConfig) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = resolve_model(config.policy, flag="--policy")
        torch.set_num_threads(config.learner.cpu_threads or len(os.sched_getaffinity(0)))
        torch.manual_seed(config.seed)
        self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        policy = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, trust_remote_code=config.trust_remote_code
        )
        policy.to("cuda" if config.learner.num_gpus else "cpu")
        pad = self._tokenizer.pad_token_id
        self._learner = Learner(policy, config.learner, 0 if pad is None else pad)

    def step(self, prompts: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> dict[str, float]:
        """One DPO step; adds `seconds` to what `Learner.step` gives."""
        started = time.monotonic()
        metrics = self._learner.step(prompts, pairs)
        return {**metrics, "seconds": time.monotonic() - started}

    def margin(self, prompts: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> float:
        """See `Learner.margin`."""
        return self._learner.margin(prompts, pairs)

    def weights(self) -> dict[str, torch.Tensor]:
        """The policy's weights for the rollout engine."""
        return unique_tensors(self._learner.policy.state_dict(), torch.bfloat16)

    def save(self, target: Location) -> None:
        """Export the policy as a Hugging Face checkpoint in bfloat16, from this node to wherever `target` is."""
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder))
            upload(Path(folder), target)

    def _save(self, target: Path) -> None:
        from safetensors.torch import save_file

        policy = self._learner.policy
        policy.config.save_pretrained(target)
        if policy.generation_config is not None:
            policy.generation_config.save_pretrained(target)
        self._tokenizer.save_pretrained(target)
        save_file(self.weights(), target / "model.safetensors", metadata={"format": "pt"})
