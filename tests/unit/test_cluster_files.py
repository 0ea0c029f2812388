"""`cluster.yaml`: Ray and EC2 take it, it promises no more than it has, and no file that brings a cluster up holds a key."""

from __future__ import annotations

import copy
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from ray._private.label_utils import validate_label_key, validate_label_value
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.unit.recipe_needs import needs

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
NODES: dict[str, dict[str, Any]] = CLUSTER["available_node_types"]
WORKERS = {name: node for name, node in NODES.items() if name != CLUSTER["head_node_type"]}
# vCPUs, GPUs and GB of each of EC2's instance types: what Ray is told must be there.
INSTANCES = {"m6i.4xlarge": (16, 0, 0), "p4de.24xlarge": (96, 8, 80)}
SECRETS = re.compile(
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{20,}|BEGIN [A-Z ]*PRIVATE KEY"
    r"|(?i:secret_access_key|session_token|auth_token)\s*[:=]\s*['\"]?[A-Za-z0-9/+]{16,}"
)


def test_ray_up_takes_the_cluster_file() -> None:
    validate_config(prepare_config(copy.deepcopy(CLUSTER)))


def test_ray_up_would_not_take_a_misspelt_key() -> None:
    wrong = copy.deepcopy(CLUSTER)
    wrong["available_node_types"]["cpu"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", NODES)
def test_ec2_takes_each_node_type(name: str) -> None:
    request = {**NODES[name]["node_config"], "MinCount": 1, "MaxCount": 1}
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert botocore.validate.ParamValidator().validate(request, shape).generate_report() == ""


def test_no_work_is_placed_on_the_head_and_it_is_not_a_spot_instance() -> None:
    head = NODES[CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_type_starts_at_nothing_and_has_what_its_instance_has(name: str) -> None:
    worker = WORKERS[name]
    assert worker["min_workers"] == 0
    cpus, gpus, _ = INSTANCES[worker["node_config"]["InstanceType"]]
    assert worker["resources"] == ({"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus})


def test_all_worker_types_may_be_there_at_once() -> None:
    assert CLUSTER["max_workers"] == sum(worker["max_workers"] for worker in WORKERS.values())


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "paper").glob("*.yaml")), ids=lambda f: f.name)
def test_the_cluster_can_grow_to_what_the_recipes_need(file: Path) -> None:
    least_gpus, memory, least_cpus = needs(file)
    held = [INSTANCES[worker["node_config"]["InstanceType"]] for worker in WORKERS.values()]
    assert all(gb >= memory for _, gpus, gb in held if gpus)
    # On-demand nodes alone are enough to begin; the others come as spot capacity allows.
    assert WORKERS["gpu"]["max_workers"] * WORKERS["gpu"]["resources"]["GPU"] >= least_gpus
    assert sum(worker["max_workers"] * worker["resources"]["CPU"] for worker in WORKERS.values()) >= least_cpus


def test_spot_is_where_it_is_promised_and_its_label_says_so() -> None:
    spot = {n: w["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot" for n, w in NODES.items()}
    assert spot == {"head": False, "cpu": True, "gpu_spot": True, "gpu": False}
    labels = {name: node["labels"]["ray.io/market-type"] for name, node in NODES.items()}
    assert labels == {name: "spot" if is_spot else "on-demand" for name, is_spot in spot.items()}


def test_the_cheaper_type_comes_first_where_several_would_do() -> None:
    assert sorted(WORKERS, key=lambda name: -WORKERS[name]["priority"]) == ["cpu", "gpu_spot", "gpu"]


@pytest.mark.parametrize("name", NODES)
def test_ray_takes_the_labels(name: str) -> None:
    for key, value in NODES[name]["labels"].items():
        assert validate_label_key(key) is None
        validate_label_value(value)


@pytest.mark.parametrize("name", NODES)
def test_nodes_get_their_rights_from_a_role(name: str) -> None:
    assert NODES[name]["node_config"]["IamInstanceProfile"]["Name"]


@pytest.mark.parametrize("file", [ROOT / "cluster.yaml", *sorted(KUBERAY.iterdir())], ids=lambda f: f.name)
def test_no_file_holds_a_key(file: Path) -> None:
    assert not SECRETS.search(file.read_text(encoding="utf-8"))


def test_the_search_for_keys_finds_them() -> None:
    assert all(
        SECRETS.search(text)
        for text in (
            "aws_access_key_id: AKIA" + "ABCDEFGHIJKLMNOP",
            "secret_access_key: " + "wJalrXUtnFEMI/K7MDENG",
            "RAY_AUTH_TOKEN=" + "0123456789abcdef",
            "-----BEGIN RSA " + "PRIVATE KEY-----",
        )
    )


@pytest.mark.parametrize("file", [ROOT / "cluster.yaml", KUBERAY / "Dockerfile"], ids=lambda f: f.name)
def test_what_a_node_installs_is_what_the_project_pins(file: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    pinned = {line.split("==")[0].split("[")[0]: line.split("==")[1] for line in wanted if "==" in line}
    text = file.read_text(encoding="utf-8")
    named = re.findall(r"\"([\w-]+)(?:\[[\w,]*\])?==([\w.]+)\"", text)
    assert ("ray", pinned["ray"]) in named
    assert all(pinned[name] == version for name, version in named)
    assert "[gpu]" in text
    for version in re.findall(r"FROM rayproject/ray:([\d.]+)-py311", text):
        assert version == pinned["ray"]


def test_what_is_copied_to_a_node_is_there_and_enough_to_build_the_package() -> None:
    local = {source for source in CLUSTER["file_mounts"].values() if not source.startswith("~")}
    assert all((ROOT / source).exists() for source in local)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert local == {"pyproject.toml", project["readme"], *project["license-files"], "wildreward_ray"}


def test_every_node_shows_the_same_token() -> None:
    assert CLUSTER["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    for side in ("head", "worker"):
        assert "RAY_AUTH_MODE=token ray start" in CLUSTER[f"{side}_start_ray_commands"][-1]


@pytest.mark.parametrize(
    "command",
    [command for key, value in CLUSTER.items() if key.endswith("_commands") for command in value],
)
def test_a_shell_can_read_each_command(command: str) -> None:
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, done.stderr
