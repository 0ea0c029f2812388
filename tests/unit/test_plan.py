"""Plans of `--dry-run`: what is summed and what is not, what is looked at and what is not, and that nothing is started."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wildreward_ray.cli import COMMANDS, main
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.serve import ScoreConfig, ServeConfig
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.model_memory import GB, MODELS, Training, engine_memory, training_memory
from wildreward_ray.core.plan import Actors, Need, Phase, Plan, StagePlan
from wildreward_ray.stages import plan, plan_inputs, requests

ROOT = Path(__file__).parents[2]
LAPTOP = str(ROOT / "configs" / "run_all.laptop.yaml")


def actors(kind: str = "judge", least: int = 1, most: int = 1, **held: Any) -> Actors:
    return Actors(kind, least, most, held.pop("cpus", 1.0), held.pop("gpus", 0.0), f"--{kind}.num-cpus", **held)


def stage(*phases: Phase) -> StagePlan:
    return StagePlan("stage", (), (), phases)


def figures(found: StagePlan) -> dict[str, int | None]:
    return {estimate.what: estimate.value for estimate in found.estimates}


def write_rows(file: Path, rows: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": list(range(rows))}), file)


def test_actors_of_a_phase_add_up_and_phases_take_turns() -> None:
    judges = Phase("judge", (actors(least=1, most=4, cpus=2, gpus=2),), task_cpus=1)
    refining = Phase("refine", (actors("refine", 2, 16),), task_cpus=1)
    together = Phase("learn", (actors("rollout", 3, 3, gpus=1), actors("learner", 4, 4, gpus=1, memory_gib=8)))
    found = Plan("run-all", (stage(judges, refining), stage(together)))
    assert together.need("least") == Need(cpus=7, gpus=7, gpus_where_any=0, memory_gib=32)
    assert found.need("least") == Need(cpus=7, gpus=7, gpus_where_any=0, memory_gib=32)
    assert found.need("most") == Need(cpus=17, gpus=8, gpus_where_any=0, memory_gib=32)


def test_a_judge_without_num_gpus_takes_them_only_where_there_are_any() -> None:
    config = ExtractConfig.load(None, {"input": ["logs"], "output": "o", "judge.engine.tensor_parallel": 2})
    need = plan.extract(config).need("least")
    assert (need.gpus, need.gpus_where_any) == (0, 2)
    assert "2 where there are GPUs" in plan.extract(config).as_text()


def test_a_judge_behind_an_endpoint_holds_no_gpu_and_has_no_estimate() -> None:
    given = {"judge.backend": "endpoint", "judge.endpoint.base_url": "http://host/v1", "judge.model": "Qwen/Qwen3-4B"}
    found = plan.extract(ExtractConfig.load(None, {"input": ["logs"], "output": "o", **given}))
    judge = found.stages[0].phases[0].actors[0]
    assert (judge.gpus, judge.gpus_where_any, judge.gpu_memory) == (0, 0, None)


def test_a_cascade_is_a_phase_of_its_own() -> None:
    given = {"cascade.enabled": True, "cascade.judge.num_gpus": 4, "judge.num_gpus": 1}
    found = plan.extract(ExtractConfig.load(None, {"input": ["logs"], "output": "o", **given}))
    assert [phase.need("most").gpus for phase in found.stages[0].phases] == [1, 4, 0]
    assert found.need("most").gpus == 4


def test_colocated_actors_share_their_gpus() -> None:
    given = {"policy": "p", "prompts": "q", "output": "o", "reward_url": "http://host:8000", "staleness": 0}
    given |= {"placement.mode": "colocated", "rollout.num_gpus": 1, "learner.num_gpus": 1}
    given |= {"rollout.replicas": 2, "learner.workers": 2}
    assert plan.online_dpo(OnlineDpoConfig.load(None, given)).need("least").gpus == 2


def test_the_service_that_a_run_starts_stands_beside_its_actors() -> None:
    given = {"policy": "p", "prompts": "q", "output": "o", "reward_model": "m", "learner.num_gpus": 1}
    found = plan.online_dpo(OnlineDpoConfig.load(None, given))
    (phase,) = found.stages[0].phases
    assert [a.kind for a in phase.actors] == ["rollout", "learner", "engine", "api"]
    assert phase.need("least").cpus == pytest.approx(0.5 + 0.5 + 0.5 + requests.API_CPUS)
    # A large reward model without a GPU is the first thing to know of such a run.
    assert any("computes on CPUs" in note for note in found.stages[0].notes)


def test_a_setting_that_can_never_be_placed_is_refused_by_the_dry_run() -> None:
    given = {"policy": "p", "prompts": "q", "output": "o", "reward_url": "http://host:8000", "rollout.num_gpus": 1.5}
    with pytest.raises(UserError, match=r"1\.5 GPUs"):
        plan.online_dpo(OnlineDpoConfig.load(None, given))


def test_steps_and_checkpoints_follow_from_the_rows_in_parquet_footers(tmp_path: Path) -> None:
    write_rows(tmp_path / "dataset" / "train" / "a.parquet", 600)
    write_rows(tmp_path / "dataset" / "train" / "b.parquet", 425)
    given = {"dataset": str(tmp_path), "output": "o", "epochs": 2, "optim.global_batch": 512, "checkpoint.every": 2}
    found = figures(plan.train(TrainConfig.load(None, given)).stages[0])
    assert found["training rows"] == 1025
    assert found["steps"] == 6  # an epoch's last batch is a small one
    assert found["checkpoints"] == 3
    assert found["tokens, at most"] == 2 * 1025 * 4096


def test_a_limit_bounds_what_is_estimated(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", 1000)
    files = {"input": [str(tmp_path)], "output": "o", "limit": 300}
    assert figures(plan.extract(ExtractConfig.load(None, files)).stages[0])["interactions"] == 300
    assert figures(plan.score(ScoreConfig.load(None, {**files, "model": "m"})).stages[0])["rows"] == 300
    files |= {"limit": 30_000}
    assert figures(plan.extract(ExtractConfig.load(None, files)).stages[0])["interactions"] == 2500


def test_files_that_are_no_parquet_have_sizes_and_no_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", 10)
    (tmp_path / "logs.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    (given,) = plan_inputs.look([str(tmp_path)], flag="--input")
    assert (given.state, given.files, given.rows) == ("read", 2, None)
    assert given.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    found = figures(plan.extract(ExtractConfig.load(None, {"input": [str(tmp_path)], "output": "o"})).stages[0])
    assert found["interactions"] is None


def test_nothing_remote_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, **_: object) -> None:
        raise AssertionError(f"{uri} was looked at")

    monkeypatch.setattr(plan_inputs, "locate", refuse)
    monkeypatch.setattr(plan_inputs, "list_files", refuse)
    remote = ["s3://bucket/logs", "hf://datasets/a/b", "gs://bucket/x"]
    assert {given.state for given in plan_inputs.look(remote, flag="--input")} == {"not read"}
    assert plan_inputs.standing("s3://bucket/out") == ()


def test_an_input_that_is_not_there_yet_is_said_and_is_no_error(tmp_path: Path) -> None:
    (given,) = plan_inputs.look([str(tmp_path / "later")], flag="--input")
    assert given.state == "not there"


def test_a_whole_output_is_said(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    found = plan.train(TrainConfig.load(None, {"dataset": "d", "output": str(tmp_path)}))
    assert "is whole: nothing is done" in found.as_text()


def test_an_evaluation_of_scores_or_a_service_starts_no_actors() -> None:
    for way in ({"scores": "s.jsonl"}, {"reward_url": "http://host:8000"}):
        found = plan.evaluate(EvaluateConfig.load(None, {**way, "benchmark": "rm_bench", "output": "o"}))
        assert found.stages[0].phases == ()
        assert found.need("most") == Need(0, 0, 0, 0)


def test_an_unknown_model_has_no_estimate_and_says_so() -> None:
    found = plan.serve(ServeConfig.load(None, {"model": "runs/mine/reward_model", "num_gpus": 1}))
    engine = found.stages[0].phases[0].actors[0]
    assert engine.gpu_memory is None
    assert "unknown model 'runs/mine/reward_model': no estimate" in found.as_text()


def test_text_and_json_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run-all", "--config", LAPTOP, "--dry-run", "json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert main(["run-all", "--config", LAPTOP, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert [found["stage"] for found in tree["stages"]] == ["extract", "train", "online-dpo"]
    for found in tree["stages"]:
        assert all(uri in text for uri in found["writes"])
        assert all(group["kind"] in text for phase in found["phases"] for group in phase["actors"])
    assert f"at the most   {tree['most']['cpus']:g} CPUs" in text
    assert tree["most"] == max((p["most"] for s in tree["stages"] for p in s["phases"]), key=lambda n: n["cpus"])


def test_commands_without_a_plan_refuse_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert {name for name, command in COMMANDS.items() if command.plan} == {
        "extract",
        "train",
        "score",
        "serve",
        "online-dpo",
        "evaluate",
        "run-all",
    }
    assert main(["demo", "--dry-run"]) == 2
    assert "unknown flag '--dry-run'" in capsys.readouterr().err


def test_a_wrong_setting_fails_a_dry_run_as_it_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run-all", "--config", LAPTOP, "--dry-run", "--train.epochs", "0"]) == 2
    assert "--train.epochs" in capsys.readouterr().err


def test_a_dry_run_starts_no_ray_and_loads_no_engine() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from wildreward_ray.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    assert main(['run-all', '--config', {LAPTOP!r}, '--dry-run']) == 0\n"
        "import ray\n"
        "print(ray.is_initialized(), [name for name in ('torch', 'vllm', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "False []"


def test_only_one_module_of_the_stages_says_what_actors_hold() -> None:
    """A stage that built its own request would run with other resources than its dry run shows."""
    stages = ROOT / "wildreward_ray" / "stages"
    building = {
        file.name
        for file in stages.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ActorRequest")
    }
    assert building == {"requests.py"}


# GPU memory


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct"]
)
def test_parameters_are_those_of_the_shape(name: str) -> None:
    """A slip in one published figure shows in the others: embedding, attention, gated MLP, norms, head."""
    shape = MODELS[name]
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * shape.hidden + (2 * shape.head_dim if name.startswith("Qwen") else 0)
    layer = 2 * shape.hidden * (query + key) + 3 * shape.hidden * shape.intermediate + norms
    embeddings = (2 if shape.own_head else 1) * shape.vocabulary * shape.hidden
    assert shape.parameters == shape.layers * layer + embeddings + shape.hidden


@pytest.mark.parametrize(
    ("how", "gigabytes"),
    [
        (Training(1, workers=8), 64.4),
        (Training(1, workers=8, sharded=True), 8.0),
        (Training(1, rank=32), 9.1),
        (Training(1, rank=32, bfloat16=False), 17.1),
    ],
)
def test_weights_and_moments_are_those_of_the_page_on_training(how: Training, gigabytes: float) -> None:
    """docs/train.md: 64 GB, 8 GB a GPU on eight, 9 GB with adapters in bfloat16; 4 bytes a frozen weight in float32."""
    found = training_memory(MODELS["Qwen/Qwen3-4B"], how)
    assert found is not None
    held = sum(size for what, size in found.parts if what.startswith(("weights, gradients", "frozen")))
    assert held / GB == pytest.approx(gigabytes, abs=0.06)


def test_a_gpu_has_to_hold_the_whole_model_once_before_it_is_sharded() -> None:
    shape = MODELS["meta-llama/Llama-3.1-8B-Instruct"]
    found = training_memory(shape, Training(1, workers=64, sharded=True, logits=1))
    assert found is not None
    assert found.total == found.loading == 4 * shape.parameters + 4 * shape.parameters // 64


def test_dpo_without_adapters_has_a_frozen_copy_and_with_them_none_more() -> None:
    shape = MODELS["Qwen/Qwen3-1.7B"]
    whole = training_memory(shape, Training(100, logits=10))
    adapted = training_memory(shape, Training(100, logits=10, rank=8))
    assert whole is not None
    assert adapted is not None
    assert dict(whole.parts)["frozen weights"] == 4 * shape.parameters
    assert dict(adapted.parts)["frozen weights"] == 2 * shape.parameters


def test_recomputing_keeps_one_tensor_a_layer() -> None:
    shape = MODELS["Qwen/Qwen3-4B"]
    kept = training_memory(shape, Training(1000))
    computed = training_memory(shape, Training(1000, recompute=True))
    assert kept is not None
    assert computed is not None
    one_layer = dict(kept.parts)["activations, at most"] // shape.layers
    assert dict(computed.parts)["activations, at most"] == one_layer + shape.layers * 1000 * shape.hidden * 2


def test_an_engine_divides_its_weights_and_its_cache() -> None:
    shape = MODELS["openai/gpt-oss-120b"]
    two = engine_memory(shape, length=4096, parallel=2)
    assert two.total == pytest.approx(engine_memory(shape, length=4096).total / 2, abs=2)
    # Quantised: 60.8 GiB, not 2 bytes for each of 117e9 parameters.
    assert 60 < engine_memory(shape, length=1).total / 2**30 < 61
    assert training_memory(shape, Training(1)) is None


def test_a_classifier_has_no_language_model_head() -> None:
    shape = MODELS["Qwen/Qwen3-8B"]
    saved = engine_memory(shape, length=1).total - engine_memory(shape, length=1, classifier=True).total
    assert saved == 2 * shape.vocabulary * shape.hidden
