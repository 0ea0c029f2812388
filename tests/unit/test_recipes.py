"""Shipped configurations: their plans fit the machines that they name, and the paper's have the paper's numbers."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_config import ROOT, shipped
from wildreward_ray.cli import COMMANDS, main
from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.run_all import RunAllConfig
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.model_memory import GB
from wildreward_ray.core.plan import Plan

CONFIGS = ROOT / "configs"
PAPER, SMALL = CONFIGS / "paper", CONFIGS / "small"
RECIPES = [file for file in shipped() if file.parent in (PAPER, SMALL)]
_NUMBER = r"(\d+(?:\.\d+)?)(?:\.\.(\d+(?:\.\d+)?))?"
_NEEDS = re.compile(rf"# needs: {_NUMBER} GPUs? of (\d+) GB, {_NUMBER} CPUs?")
# What a GPU should have free for the CUDA context, fragments and workspaces, which are not counted.
_SPARE = 0.08


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


def command_of(file: Path) -> str:
    return re.split(r"[.-]", file.name)[0].replace("_", "-")


def loaded(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def plan_of(file: Path) -> Plan:
    command = COMMANDS[command_of(file)]
    model: type[Section] = loaded(command.config)
    # Its logs are the user's.
    also = {"extract.input": ["logs"]} if file.name == "run_all.laptop.yaml" else {}
    plan: Plan = loaded(str(command.plan))(model.load(str(file), also))
    return plan


def edges(low: str, high: str | None) -> tuple[float, float]:
    return float(low), float(high or low)


@pytest.mark.parametrize("file", shipped(), ids=name_of)
def test_every_shipped_file_has_a_dry_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command_of(file), "--config", str(file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"plan of wildreward {command_of(file)}: ")
    assert "at the most" in shown


@pytest.mark.parametrize("file", RECIPES, ids=name_of)
def test_a_recipe_needs_what_its_first_line_says(file: Path) -> None:
    line = file.read_text(encoding="utf-8").splitlines()[0]
    said = _NEEDS.fullmatch(line)
    assert said, f"{line!r} names no machine"
    gpus, cpus = edges(said[1], said[2]), edges(said[4], said[5])
    plan = plan_of(file)
    least, most = plan.need("least"), plan.need("most")
    assert (least.gpus, most.gpus) == pytest.approx(gpus)
    assert (least.cpus, most.cpus) == pytest.approx(cpus)
    # A recipe for GPUs asks for them; it doesn't take what happens to be there.
    assert not most.gpus_where_any


@pytest.mark.parametrize("file", RECIPES, ids=name_of)
def test_a_recipe_fits_the_gpus_that_it_names(file: Path) -> None:
    said = _NEEDS.match(file.read_text(encoding="utf-8"))
    assert said
    room = float(said[3]) * GB * (1 - _SPARE)
    for stage in plan_of(file).stages:
        for phase in stage.phases:
            sharing = [a for a in phase.actors if 0 < a.gpus < 1]
            alone = [a for a in phase.actors if a.gpus >= 1]
            for actors in alone:
                assert actors.gpu_memory is None or actors.gpu_memory.total <= room, (stage.stage, actors.kind)
            assert sum(a.gpu_memory.total for a in sharing if a.gpu_memory) <= room, stage.stage


def test_recipes_of_both_kinds_cover_every_stage() -> None:
    stages = {"extract", "train", "serve", "online-dpo", "evaluate", "run-all"}
    for folder in (PAPER, SMALL):
        assert {command_of(file) for file in RECIPES if file.parent == folder} == stages


def test_every_model_of_the_paper_has_an_estimate() -> None:
    for name in ("extract.yaml", "train.qwen3-4b.yaml", "train.qwen3-8b.yaml", "online_dpo.yaml"):
        for stage in plan_of(PAPER / name).stages:
            held = [a for phase in stage.phases for a in phase.actors if a.gpus]
            assert held
            assert all(a.gpu_memory for a in held), name


# Literals of the paper (arXiv 2602.08829) and its code, not of our defaults.


def check_extract(config: ExtractConfig) -> None:
    assert config.input == ("hf://datasets/allenai/WildChat-4.8M/data",)
    assert config.judge.model == "openai/gpt-oss-120b"
    assert config.judge.reasoning.temperature == 0.5
    assert (config.hindsight.enabled, config.hindsight.window, config.hindsight.threshold) == (True, 2, 0.6)
    assert config.hindsight.model == "sentence-transformers/all-MiniLM-L6-v2"
    assert config.refusal.enabled
    quality = config.quality
    assert (quality.min_prompt, quality.min_response, quality.max_history) == (5, 10, 20)
    assert quality.languages == ("English", "Chinese")
    assert quality.pii == "drop"
    assert config.levels == 4
    assert config.split.test_share * 186_000 == pytest.approx(5_000, rel=0.01)


def check_train(config: TrainConfig, base: str) -> None:
    optim = config.optim
    assert config.base == base
    assert (config.levels, config.epochs, config.max_length, config.precision) == (4, 1, 4096, "bfloat16")
    assert (optim.learning_rate, optim.weight_decay, optim.warmup_share) == (1e-5, 0.01, 0.05)
    assert (optim.global_batch, optim.clip_norm) == (512, 1.0)
    assert (config.objective.loss, config.objective.soft_targets) == ("cumulative", False)
    assert not config.lora.rank


def check_online_dpo(config: OnlineDpoConfig) -> None:
    assert config.policy == "meta-llama/Llama-3.1-8B-Instruct"
    assert (config.rollout.samples, config.rollout.temperature) == (8, 1.0)
    assert (config.learner.learning_rate, config.learner.beta, config.learner.loss) == (5e-7, 0.1, "sigmoid")
    assert config.prompts_per_step == 64
    assert config.limit == 20_000 + config.eval.prompts
    assert 0 <= 20_000 - config.steps * config.prompts_per_step < config.prompts_per_step
    assert not config.learner.lora.rank


def test_the_papers_stages_have_the_papers_numbers() -> None:
    check_extract(ExtractConfig.load(str(PAPER / "extract.yaml")))
    check_train(TrainConfig.load(str(PAPER / "train.qwen3-4b.yaml")), "Qwen/Qwen3-4B")
    check_train(TrainConfig.load(str(PAPER / "train.qwen3-8b.yaml")), "Qwen/Qwen3-8B")
    check_online_dpo(OnlineDpoConfig.load(str(PAPER / "online_dpo.yaml")))


@pytest.mark.parametrize("name", ["run_all.8-gpu.yaml", "run_all.spot.yaml"])
def test_the_papers_whole_runs_have_the_papers_numbers(name: str) -> None:
    config = RunAllConfig.load(str(PAPER / name))
    check_extract(config.extract)
    check_train(config.train, "Qwen/Qwen3-4B")
    check_online_dpo(config.online_dpo)


def test_what_a_spot_cluster_writes_is_in_an_object_store() -> None:
    config = RunAllConfig.load(str(PAPER / "run_all.spot.yaml"))
    outputs = [config.output, config.extract.output, config.train.output, config.online_dpo.output]
    assert all(output.startswith("s3://") for output in outputs)
    ranges = [config.extract.judge.replicas, config.extract.hindsight.replicas, config.train.workers]
    assert all(least < most for least, most in ranges)


def test_recipes_hand_on_what_the_next_one_reads() -> None:
    for folder, reward in ((PAPER, "train.qwen3-4b.yaml"), (SMALL, "train.yaml")):
        tree = {
            name: yaml.safe_load((folder / name).read_text(encoding="utf-8"))
            for name in ("extract.yaml", reward, "serve.yaml", "online_dpo.yaml", "evaluate.rm_bench.yaml")
        }
        assert tree[reward]["dataset"] == tree["extract.yaml"]["output"]
        assert tree["serve.yaml"]["model"] == tree[reward]["output"] == tree["evaluate.rm_bench.yaml"]["model"]
        assert tree["online_dpo.yaml"]["prompts"] == f"{tree['extract.yaml']['output']}/dataset/train"
        token = tree["serve.yaml"].get("auth_token_env")
        assert tree["online_dpo.yaml"].get("reward", {}).get("token_env") == token
