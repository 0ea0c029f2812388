"""Comparing runs: intervals are those of the paired bootstrap, unlike rows are never compared, and finished runs are passed over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from tests.unit.experiment_artefact import refined_rows, write_extraction
from wildreward_ray.cluster.artifact import open_artifact
from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.config.experiment import ExperimentConfig
from wildreward_ray.core.config.train import OPERATIONAL, TrainConfig
from wildreward_ray.core.errors import StorageError, UserError, WildRewardError
from wildreward_ray.core.manifest import MANIFEST, FunnelStep, Manifest
from wildreward_ray.report.experiment import plot, table
from wildreward_ray.stages import paired_bootstrap
from wildreward_ray.stages.experiment import Run, plan, run, state_of
from wildreward_ray.stages.held_out import read_predictions, same_rows
from wildreward_ray.stages.paired_bootstrap import COMPARED, estimates
from wildreward_ray.stages.train_export import HELD_OUT
from wildreward_ray.stages.variants import open_extraction

Floats = NDArray[np.float64]
VARIANTS = ["full", "without_mining", "without_refusal_validation", "raw"]


def scored(n: int = 300, noise: float = 1.0, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Scores with ties, and labels in 1..4."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(7).integers(1, 5, n)
    return np.round(labels + rng.normal(0, noise, n), 1).clip(1, 4), labels


def p_gt(scores: Floats) -> Floats:
    """[N, 3] probabilities that give these scores."""
    return np.repeat((scores[:, None] - 1) / 3, 3, axis=1)


# The bootstrap


def test_estimates_on_all_rows_are_the_usual_metrics() -> None:
    scores, labels = scored()
    own, _ = estimates({"x": [p_gt(scores)]}, labels, 4, resamples=100, seed=0)
    usual = {
        "mae": np.abs(scores - labels).mean(),
        "auc": roc_auc_score(labels >= 3, scores),
        "spearman": spearmanr(scores, labels).statistic,
    }
    assert usual.keys() == COMPARED.keys()
    for metric, value in usual.items():
        found = own["x"][metric]
        assert found is not None
        assert found.mean == pytest.approx(value)


def test_estimate_is_the_mean_over_seeds_with_their_spread() -> None:
    a, labels = scored(seed=1)
    b, _ = scored(seed=2)
    own, _ = estimates({"x": [p_gt(a), p_gt(b)]}, labels, 4, resamples=100, seed=0)
    found, errors = own["x"]["mae"], [np.abs(s - labels).mean() for s in (a, b)]
    assert found is not None
    assert found.mean == pytest.approx(np.mean(errors))
    assert found.seed_sd == pytest.approx(np.std(errors, ddof=1))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high
    alone = estimates({"x": [p_gt(a)]}, labels, 4, resamples=100, seed=0)[0]["x"]["mae"]
    assert alone is not None
    assert alone.seed_sd is None


def test_interval_of_a_mean_has_the_width_that_theory_gives() -> None:
    scores, labels = scored(n=2000)
    found = estimates({"x": [p_gt(scores)]}, labels, 4, resamples=2000, seed=0)[0]["x"]["mae"]
    assert found is not None
    assert found.high is not None
    assert found.low is not None
    error = np.abs(scores - labels).std() / np.sqrt(2000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_differences_are_paired() -> None:
    """A variant that is a little worse on every row differs for certain, however wide its own interval is."""
    scores, labels = scored(n=200)
    signs = np.where(scores >= labels, 1, -1)
    own, differences = estimates(
        {"full": [p_gt(scores)], "worse": [p_gt(scores + 0.05 * signs)]}, labels, 4, resamples=500, seed=0
    )
    relative, absolute = differences["worse"]["mae"], own["worse"]["mae"]
    assert relative is not None
    assert absolute is not None
    assert relative.mean == pytest.approx(0.05)
    assert [relative.low, relative.high] == pytest.approx([0.05, 0.05])
    assert absolute.high - absolute.low > 0.05  # type: ignore[operator]
    assert "full" not in differences


def test_estimates_do_not_depend_on_how_many_resamples_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = scored(n=50)
    whole = estimates({"x": [p_gt(scores)]}, labels, 4, resamples=100, seed=0)
    monkeypatch.setattr(paired_bootstrap, "_CHUNK", 500)
    parts = estimates({"x": [p_gt(scores)]}, labels, 4, resamples=100, seed=0)
    for metric in COMPARED:
        one, other = whole[0]["x"][metric], parts[0]["x"][metric]
        assert one is not None
        assert other is not None
        assert asdict(one) == pytest.approx(asdict(other))


def test_what_rows_do_not_define_is_none() -> None:
    ones = np.ones(30, np.int64)
    own, differences = estimates(
        {"a": [p_gt(np.linspace(1, 2, 30))], "b": [p_gt(np.full(30, 1.5))]}, ones, 4, resamples=100, seed=0
    )
    assert own["a"]["auc"] is own["b"]["spearman"] is differences["b"]["auc"] is None
    assert own["a"]["mae"] is not None


def test_interval_that_few_resamples_define_is_none() -> None:
    labels = np.array([1] * 29 + [4])  # about a third of the resamples lack the only positive row
    found = estimates({"a": [p_gt(np.linspace(1, 4, 30))]}, labels, 4, resamples=200, seed=0)[0]["a"]["auc"]
    assert found is not None
    assert (found.mean, found.low, found.high) == (1.0, None, None)


# Predictions


def write_predictions(
    folder: Path, noise: float, seed: int, *, n: int = 400, labels: Sequence[int] | None = None
) -> None:
    """A `held_out.parquet` whose rows are the same for every seed: 83 % explicit, 15 % of refusals, 2 % of hindsight."""
    rows = np.random.default_rng(7)
    y = np.array(labels) if labels is not None else rows.integers(1, 5, n)
    origins = rows.choice(["explicit", "refusal", "hindsight"], len(y), p=[0.83, 0.15, 0.02])
    logits = 3 * (y[:, None] - np.array([1.5, 2.5, 3.5])) + np.random.default_rng(seed).normal(0, noise, (len(y), 3))
    columns: dict[str, Any] = {
        "row_id": [f"{i:05d}:1" for i in range(len(y))],
        "label": pa.array(y, pa.int8()),
        "logits": pa.array(logits.tolist(), pa.list_(pa.float32())),
        "p_gt": pa.array(expit(logits).tolist(), pa.list_(pa.float32())),
        "language": ["English"] * len(y),
        "origin": origins.tolist(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / HELD_OUT)


def test_other_held_out_rows_or_labels_are_never_compared(tmp_path: Path) -> None:
    write_predictions(tmp_path / "a", 1, 0)
    write_predictions(tmp_path / "b", 1, 1)
    write_predictions(tmp_path / "c", 1, 1, n=399)
    write_predictions(tmp_path / "d", 1, 1, labels=[1] * 400)
    found = {name: read_predictions(locate(str(tmp_path / name / HELD_OUT)), 4) for name in "abcd"}
    same_rows([found["a"], found["b"]])
    for other in ("c", "d"):
        with pytest.raises(WildRewardError, match="can't be compared"):
            same_rows([found["a"], found[other]])


def test_predictions_of_another_number_of_levels_and_missing_ones_are_errors(tmp_path: Path) -> None:
    write_predictions(tmp_path, 1, 0)
    with pytest.raises(WildRewardError, match=r"'00000:1'.* 5 levels have 4"):
        read_predictions(locate(str(tmp_path / HELD_OUT)), 5)
    with pytest.raises(StorageError, match="can't read"):
        read_predictions(locate(str(tmp_path / "absent.parquet")), 4)


# The stage


def test_training_is_configured_without_what_the_experiment_sets() -> None:
    given = {"dataset": "d", "output": "o", "users": "[1, 2]", "train.epochs": "3", "train.optim.global_batch": "16"}
    config = ExperimentConfig.load(None, given)
    assert (config.train.epochs, config.train.optim.global_batch) == (3, 16)
    for name, value in {"dataset": "x", "output": "x", "resume_from": "x", "overwrite": "true"}.items():
        with pytest.raises(UserError, match="an experiment sets this itself") as caught:
            ExperimentConfig.load(None, {**given, f"train.{name}": value})
        assert caught.value.flag == f"--train.{name.replace('_', '-')}"
    for users in ([1], [2, 4], [1, 10, 3], [1, 1]):
        with pytest.raises(UserError, match="in ascending order"):
            ExperimentConfig.load(None, {**given, "users": users})


def test_runs_of_an_ablation_share_datasets_and_those_of_diversity_do_not() -> None:
    common = {"dataset": "d", "output": "s3://bucket/x?scheme=http", "seeds": 2, "train": {"seed": 5}}
    runs = plan(ExperimentConfig.model_validate({**common, "kind": "ablation"}), ["full", "raw"])
    assert [(one.variant, one.seed) for one in runs] == [("full", 5), ("raw", 5), ("full", 6), ("raw", 6)]
    assert runs[0] == Run(
        "full",
        5,
        "s3://bucket/x/_unfinished/variants/full?scheme=http",
        "s3://bucket/x/_unfinished/runs/full-seed-5?scheme=http",
    )
    assert runs[0].dataset == runs[2].dataset
    assert len({one.output for one in runs}) == 4
    drawn = plan(ExperimentConfig.model_validate({**common, "kind": "diversity"}), ["users_x1", "users_x3"])
    assert len({one.dataset for one in drawn}) == 4


def finish_runs(config: ExperimentConfig, names: list[str] = VARIANTS) -> list[Run]:
    """Leave what an experiment that was killed after its last run leaves: whole reward models, and state of the same settings."""
    with open_artifact(config.output, overwrite=False, state=state_of(config, open_extraction(config.dataset))):
        pass
    runs = plan(config, names)
    for one in runs:
        folder = Path(one.output)
        place = names.index(one.variant)
        write_predictions(folder, 2 + 4 * place, 10 * place + one.seed)
        (folder / "model.safetensors").write_bytes(b"weights")
        trained = TrainConfig.model_validate({**config.train.model_dump(), "dataset": "d", "output": "o"})
        step = FunnelStep(name="train", unit="rows", rows_in=110, rows_out=100, dropped={"over_limit": 10})
        manifest = Manifest(
            kind="reward_model", inputs=[], config=trained.model_dump(mode="json"), seconds=1.0, funnel=[step]
        )
        (folder / MANIFEST).write_text(manifest.checked_json(), encoding="utf-8")
    return runs


def experiment(folder: Path, **settings: Any) -> ExperimentConfig:
    uri = write_extraction(folder / "extraction", refined_rows(600))
    common = {"dataset": uri, "output": str(folder / "out"), "seeds": 2, "bootstrap": 200}
    return ExperimentConfig.model_validate(common | settings)


def test_finished_runs_are_compared_without_being_trained_again(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    finish_runs(config)
    found = run(config).results
    output = Path(config.output)
    assert json.loads((output / "results.json").read_text(encoding="utf-8")) == found
    assert 0 < found["held_out"]["hindsight"] < config.train.eval.min_group
    assert found["groups"] == ["explicit", "refusal"]
    mae = {name: found["variants"][name]["explicit"]["mae"]["mean"] for name in VARIANTS}
    assert list(mae.values()) == sorted(mae.values())
    assert found["differences"]["raw"]["explicit"]["mae"]["mean"] == pytest.approx(mae["raw"] - mae["full"])
    assert found["differences"]["raw"]["explicit"]["mae"]["low"] > 0
    assert {(one["variant"], one["seed"], one["rows"]) for one in found["runs"]} == {
        (name, seed, 100) for name in VARIANTS for seed in (0, 1)
    }
    by_run = [one["metrics"]["explicit"]["mae"] for one in found["runs"] if one["variant"] == "raw"]
    assert np.mean(by_run) == pytest.approx(mae["raw"])
    assert sorted(p.name for p in output.iterdir()) == ["manifest.json", "plot.png", "results.json", "runs", "table.md"]
    kept = sorted(p.name for p in (output / "runs" / "raw-seed-1").iterdir())
    assert kept == [HELD_OUT, MANIFEST]


def test_models_are_kept_when_asked_for(tmp_path: Path) -> None:
    config = experiment(tmp_path, keep_models=True, seeds=1)
    finish_runs(config)
    run(config)
    assert (Path(config.output) / "runs" / "raw-seed-0" / "model.safetensors").read_bytes() == b"weights"


def test_work_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    runs = finish_runs(config)
    other = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2})})
    with pytest.raises(StorageError, match=r"differs in config\.train\.epochs"):
        run(other)
    assert (Path(runs[0].output) / HELD_OUT).exists()


def test_more_seeds_and_other_resources_go_on_with_the_same_work(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    extraction = open_extraction(config.dataset)
    more = config.model_copy(
        update={"seeds": 5, "bootstrap": 500, "train": config.train.model_copy(update={"workers": (4, 4)})}
    )
    assert "workers" in OPERATIONAL
    assert state_of(more, extraction) == state_of(config, extraction)


def test_dataset_without_explicit_held_out_rows_is_refused_before_training(tmp_path: Path) -> None:
    rows = [row for row in refined_rows(600) if row["split"] != "test" or row["origin"] != "explicit"]
    uri = write_extraction(tmp_path / "extraction", rows)
    config = ExperimentConfig(dataset=uri, output=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"none of origin 'explicit'.*--dataset"):
        run(config)
    assert not (tmp_path / "out").exists()


def test_too_few_users_are_refused_before_there_is_work_that_fewer_could_not_go_on_with(tmp_path: Path) -> None:
    config = experiment(tmp_path, kind="diversity", users=(1, 50))
    with pytest.raises(UserError, match=r"users with 50 training rows or more.*--users"):
        run(config)
    assert not Path(config.output).exists()


def test_diversity_compares_the_sets_that_every_seed_drew(tmp_path: Path) -> None:
    config = experiment(tmp_path, kind="diversity", users=(1, 2))
    finish_runs(config, ["users_x1", "users_x2"])
    found = run(config).results
    assert found["baseline"] == "users_x1"
    users = {(one["variant"], one["seed"]): one["users"] for one in found["runs"]}
    assert users.keys() == {(name, seed) for name in ("users_x1", "users_x2") for seed in (0, 1)}
    sizes = {(one["variant"], one["seed"]): one["funnel"][0]["rows_out"] for one in found["runs"]}
    for seed in (0, 1):
        assert users["users_x2", seed] == 2 * users["users_x1", seed]
        assert sizes["users_x2", seed] == sizes["users_x1", seed]


# The report


def test_table_and_picture_show_what_is_not_defined_as_such(tmp_path: Path) -> None:
    config = experiment(tmp_path, seeds=1)
    finish_runs(config)
    results = run(config).results
    results["variants"]["raw"]["refusal"]["auc"] = None
    results["differences"]["raw"]["refusal"]["auc"] = None
    results["variants"]["full"]["explicit"]["mae"] |= {"low": None, "high": None, "seed_sd": 0.25}
    text = table(results)
    lines = [line for line in text.splitlines() if line.startswith("| raw")]
    assert sum("n/a" in line for line in lines) == 2
    full = next(line for line in text.splitlines() if line.startswith("| full"))
    mean = results["variants"]["full"]["explicit"]["mae"]["mean"]
    assert f"| {mean:.3f} ± 0.250 " in full
    assert plot(results).startswith(b"\x89PNG")
    for group in results["variants"].values():
        group["refusal"] = dict.fromkeys(COMPARED)
    assert plot(results).startswith(b"\x89PNG")
