"""Request bodies as other programs' own client functions sent them to a recording server, byte for byte."""

from __future__ import annotations

# OpenRLHF 0.11.0 (3c3be62), openrlhf/utils/agent.py, SingleTurnAgentExecutor: one sample a request.
OPENRLHF = (
    rb'{"query": ["<|im_start|>user\nWie geht\u2019s? \ud83d\ude00<|im_end|>\n<|im_start|>assistant\n'
    rb'Gut \"danke\"!\n<|im_end|>"], "prompts": ["<|im_start|>user\nWie geht\u2019s? \ud83d\ude00<|im_end|>\n'
    rb'<|im_start|>assistant\n"], "labels": [null]}'
)

# OpenRLHF 0.9.1, openrlhf/utils/remote_rm_utils.py: a batch a request.
OPENRLHF_0_9 = (
    rb'{"query": ["<|im_start|>user\nWie geht\u2019s? \ud83d\ude00<|im_end|>\n<|im_start|>assistant\n'
    rb'Gut \"danke\"!\n<|im_end|>", "b"], "prompts": ["<|im_start|>user\nWie geht\u2019s? \ud83d\ude00<|im_end|>\n'
    rb'<|im_start|>assistant\n", "b"], "labels": ["", "1"]}'
)

# WildReward (f31ed99), deploy_rm/router.py, over httpx 0.28.1.
WILDREWARD = '{"query":["What is the capital of France?","Gut “danke”! 😀"]}'.encode()

# verl 0.10.0.dev (1dda039), verl/experimental/reward_loop/reward_loop.py, RewardLoopWorker with the engine vllm.
VERL = (
    rb'{"model": "/m/rm", "input": "user: Wie geht\u2019s?\nassistant: Gut \"danke\"! \ud83d\ude00", '
    rb'"use_activation": false}'
)

# slime 0.3.1 (624b824), slime/rollout/rm_hub/__init__.py, remote_rm: with a text as prompt, and with messages.
SLIME_TEXT = rb'{"prompt": "Wie geht\u2019s?", "response": "Gut \u201cdanke\u201d!", "label": "1"}'
SLIME_MESSAGES = (
    rb'{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Wie geht\u2019s?"}], '
    rb'"response": "Gut \u201cdanke\u201d!", "label": null}'
)

# LLaMA-Factory 0.9.6.dev0 (ff6d4d1), src/llamafactory/train/ppo/ppo_utils.py, get_rewards_from_server.
LLAMA_FACTORY = (
    rb'{"model": "model", "messages": ["<|im_start|>user\nWie geht\u2019s? \ud83d\ude00<|im_end|>\n'
    rb'<|im_start|>assistant\nGut \"danke\"!\n<|im_end|>", "b"]}'
)
