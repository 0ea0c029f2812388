"""Manifests in `deploy/kuberay`: KubeRay takes them, and what they name exists."""

from __future__ import annotations

import copy
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeDeploySchema

from tests.unit.crd_schema import disagreements, violations
from tests.unit.recipe_needs import needs
from wildreward_ray.cli import COMMANDS, _load, parse
from wildreward_ray.core.config.serve import ServeConfig

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
IN_IMAGE = "/opt/wildreward"
JOBS = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(KUBERAY.glob("rayjob-*.yaml"))}
SERVICE = yaml.safe_load((KUBERAY / "rayservice-reward.yaml").read_text(encoding="utf-8"))
MANIFESTS = {**JOBS, "rayservice-reward": SERVICE}
EXCERPT: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "data" / "kuberay" / "ray_v1.yaml").read_text("utf-8")
)["kinds"]


def test_there_is_a_manifest_for_each_stage() -> None:
    assert set(JOBS) == {f"rayjob-{stage}" for stage in ("extract", "train", "online-dpo", "evaluate", "run-all")}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_excerpt_of_the_crd_takes_the_manifest(name: str) -> None:
    manifest = MANIFESTS[name]
    assert manifest["apiVersion"] == "ray.io/v1"
    assert violations(EXCERPT[manifest["kind"]], manifest) == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_crd_takes_the_manifest(name: str) -> None:
    assert violations(crd(MANIFESTS[name]["kind"]), MANIFESTS[name]) == []


@pytest.mark.parametrize("kind", EXCERPT)
def test_the_excerpt_agrees_with_the_crd(kind: str) -> None:
    spec = crd(kind)["properties"]["spec"]
    # Submission modes and patterns of quantities are checked by the operator, not by its CRD.
    assert disagreements(EXCERPT[kind]["properties"]["spec"], spec) == []


def test_a_misspelt_field_and_a_value_of_another_type_are_refused() -> None:
    wrong = copy.deepcopy(JOBS["rayjob-extract"])
    group = cluster_of(wrong)["workerGroupSpecs"][0]
    group["maxReplica"] = 3
    group["minReplicas"] = "none"
    found = violations(EXCERPT["RayJob"], wrong)
    assert len(found) == 2
    assert any("maxReplica" in problem for problem in found)
    assert any(problem.startswith("spec.rayClusterSpec.workerGroupSpecs.0.minReplicas") for problem in found)


@pytest.mark.parametrize("name", JOBS)
def test_an_entry_point_exists_and_its_flags_are_valid(name: str) -> None:
    program, script, *flags = shlex.split(JOBS[name]["spec"]["entrypoint"])
    assert program == "python"
    assert script.startswith(IN_IMAGE)
    file = ROOT / script.removeprefix(IN_IMAGE + "/")
    assert file.parent.name == "jobs"
    assert file.is_file()
    stage = file.stem.replace("_", "-")
    assert name == f"rayjob-{stage}"
    here = [flag.replace(IN_IMAGE, str(ROOT)) for flag in flags]
    config: Any = parse(stage, _load(COMMANDS[stage].config), here)
    # Pods and their disks go; what is written there is lost.
    assert config.output.startswith("s3://")


@pytest.mark.parametrize("name", [name for name in JOBS if "--config" in JOBS[name]["spec"]["entrypoint"]])
def test_the_groups_of_a_job_hold_what_its_settings_need(name: str) -> None:
    flags = shlex.split(JOBS[name]["spec"]["entrypoint"])
    file = Path(flags[flags.index("--config") + 1].replace(IN_IMAGE, str(ROOT)))
    least_gpus, _, least_cpus = needs(file)
    groups = cluster_of(JOBS[name])["workerGroupSpecs"]
    limits = [(group["maxReplicas"], container_of(group)["resources"]["limits"]) for group in groups]
    assert sum(most * int(limit.get("nvidia.com/gpu", 0)) for most, limit in limits) >= least_gpus
    assert sum(most * int(limit["cpu"]) for most, limit in limits) >= least_cpus


@pytest.mark.parametrize("name", JOBS)
def test_a_job_ends_with_its_cluster_and_is_tried_again(name: str) -> None:
    spec = JOBS[name]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))


def test_the_image_has_what_the_entry_points_name() -> None:
    docker = (KUBERAY / "Dockerfile").read_text(encoding="utf-8")
    assert f"WORKDIR {IN_IMAGE}\n" in docker
    copied = {source for line in re.findall(r"^COPY \S+ (.+) \S+$", docker, re.MULTILINE) for source in line.split()}
    assert {"pyproject.toml", "README.md", "LICENSE", "wildreward_ray", "configs", "jobs"} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_every_manifest_has_the_same_head_and_image() -> None:
    clusters = [cluster_of(manifest) for manifest in MANIFESTS.values()]
    assert all(cluster["headGroupSpec"] == clusters[0]["headGroupSpec"] for cluster in clusters)
    assert clusters[0]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(cluster["enableInTreeAutoscaling"] for cluster in clusters)
    assert len({container_of(group)["image"] for cluster in clusters for group in groups_of(cluster)}) == 1


@pytest.mark.parametrize("name", JOBS)
def test_a_worker_group_starts_at_nothing(name: str) -> None:
    for group in cluster_of(JOBS[name])["workerGroupSpecs"]:
        assert (group["minReplicas"], group["replicas"]) == (0, 0)
        assert group["maxReplicas"] > 0


@pytest.mark.parametrize("name", MANIFESTS)
def test_groups_ask_for_the_nodes_that_their_labels_name(name: str) -> None:
    account = yaml.safe_load((KUBERAY / "service-account.yaml").read_text(encoding="utf-8"))["metadata"]["name"]
    for group in groups_of(cluster_of(MANIFESTS[name])):
        pod = group["template"]["spec"]
        assert group["labels"]["ray.io/market-type"] == pod["nodeSelector"]["karpenter.sh/capacity-type"]
        assert pod["serviceAccountName"] == account
        given = container_of(group)["resources"]
        # Less memory than promised, and Ray would place more than the pod may use.
        assert given["requests"]["memory"] == given["limits"]["memory"]
        has_gpus = "nvidia.com/gpu" in given["limits"]
        assert has_gpus == group.get("groupName", "head").startswith("gpu")
        assert has_gpus == any(taint["key"] == "nvidia.com/gpu" for taint in pod.get("tolerations", []))


def test_a_group_of_the_same_name_is_the_same_in_every_job() -> None:
    found: dict[str, Any] = {}
    for manifest in JOBS.values():
        for group in cluster_of(manifest)["workerGroupSpecs"]:
            assert found.setdefault(group["groupName"], group) == group
    assert {name: group["labels"]["ray.io/market-type"] for name, group in found.items()} == {
        "cpu": "spot",
        "gpu-spot": "spot",
        "gpu": "on-demand",
    }


def test_the_reward_service_is_the_shipped_one_with_another_model() -> None:
    shipped = yaml.safe_load((ROOT / "configs" / "serve.applications.yaml").read_text(encoding="utf-8"))
    here = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(here)
    for application in here["applications"]:
        ServeConfig.load(None, application["args"])
        assert application["args"]["model"].startswith("s3://")
    for deployed in (shipped, here):
        for application in deployed["applications"]:
            application["args"] = {**application["args"], "model": "that of the manifest"}
    assert here == shipped


def test_the_service_has_pods_for_as_many_engines_as_it_may_start() -> None:
    args = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["applications"][0]["args"]
    least, most = ServeConfig.load(None, args).replicas
    (group,) = cluster_of(SERVICE)["workerGroupSpecs"]
    limits = container_of(group)["resources"]["limits"]
    assert (group["minReplicas"], group["maxReplicas"]) == (least, most)
    assert int(limits["nvidia.com/gpu"]) == args["num_gpus"]
    assert int(limits["cpu"]) >= args["num_cpus"] + args["api_replicas"]


@pytest.mark.parametrize("name", ["rayjob-online-dpo", "rayjob-evaluate"])
def test_jobs_that_need_rewards_ask_the_service_with_its_token(name: str) -> None:
    flags = shlex.split(JOBS[name]["spec"]["entrypoint"])
    served = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    # The operator names the service's address after the RayService.
    url = f"http://{SERVICE['metadata']['name']}-serve-svc:{served['http_options']['port']}"
    assert flags[flags.index("--reward-url") + 1] == url
    assert flags[flags.index("--reward.token-env") + 1] == served["applications"][0]["args"]["auth_token_env"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_operator_is_told_the_version_that_the_image_has(name: str) -> None:
    image = re.search(r"^FROM rayproject/ray:([\d.]+)-py311", (KUBERAY / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert image is not None
    assert cluster_of(MANIFESTS[name])["rayVersion"] == image[1]


def test_every_cluster_asks_for_a_token() -> None:
    assert all(cluster_of(manifest)["authOptions"] == {"mode": "token"} for manifest in MANIFESTS.values())


def crd(kind: str) -> dict[str, Any]:
    """The OpenAPI schema of `ray.io/v1` in the CRD of `kind`, from the directory that WILDREWARD_KUBERAY_CRDS names."""
    folder = os.environ.get("WILDREWARD_KUBERAY_CRDS")
    if not folder:
        pytest.skip("WILDREWARD_KUBERAY_CRDS names no directory with KubeRay's CRDs; their excerpt is checked")
    file = Path(folder) / f"ray.io_{kind.lower()}s.yaml"
    versions = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["spec"]["versions"]
    schema: dict[str, Any] = next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    return schema


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    cluster: dict[str, Any] = spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec["rayClusterConfig"]
    return cluster


def groups_of(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return container
