"""What each stage's actors hold, from its configuration alone: what a run checks before it starts, and a dry run shows."""

from __future__ import annotations

from wildreward_ray.cluster.placement import Kind, plan
from wildreward_ray.cluster.preflight import ActorRequest
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.config.extract import HindsightSection
from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.serve import ScoreConfig, ServeConfig
from wildreward_ray.core.config.train import TrainConfig

# Ray CPUs of a process of the service that reads requests.
API_CPUS = 0.1
# Ray CPUs of the plain tasks that must find room beside the actors of a stage.
EXTRACT_TASK_CPUS, SCORE_TASK_CPUS, EVALUATE_TASK_CPUS = 1.0, 0.25, 0.5


def judge_gpus(section: JudgeSection) -> tuple[float, bool]:
    """Ray GPUs of one judge actor, and whether it holds them only where the cluster has any."""
    if section.backend == "endpoint":
        return 0.0, False
    if section.num_gpus is not None:
        return section.num_gpus, False
    return float(section.engine.tensor_parallel), True


def judge(section: JudgeSection, gpus: float, flag: str = "--judge") -> ActorRequest:
    """The judge actors, each of which holds `gpus` GPUs; `flag` begins the names of the section's flags."""
    least, most = section.replicas
    return ActorRequest("judge", least, section.num_cpus, gpus, f"{flag}.num-cpus", most=most)


def refine(section: HindsightSection) -> ActorRequest:
    """The refining actors."""
    least, most = section.replicas
    return ActorRequest("refine", least, section.num_cpus, section.num_gpus, "--hindsight.num-cpus", most=most)


def train(config: TrainConfig) -> list[ActorRequest]:
    """The workers of Ray Train."""
    least, most = config.workers
    return [ActorRequest("training", least, config.num_cpus, config.num_gpus, "--workers", most=most)]


def scoring(config: ScoreConfig | EvaluateConfig) -> list[ActorRequest]:
    """The actors that score, in `score` and in `evaluate --model`."""
    held = config.num_cpus, config.num_gpus
    return [ActorRequest("scoring", config.replicas, *held, "--num-cpus", most=config.replicas)]


def serve(config: ServeConfig) -> list[ActorRequest]:
    """The engine replicas of the service and the processes in front of them."""
    least, most = config.replicas
    return [
        ActorRequest("engine", least, config.num_cpus, config.num_gpus, "--num-cpus", most=most),
        ActorRequest("api", config.api_replicas, API_CPUS, 0.0, "--num-cpus", most=config.api_replicas),
    ]


def online_dpo(config: OnlineDpoConfig) -> list[ActorRequest]:
    """The actors of the run's placement group.

    Raises:
        UserError: see `placement.plan`.
    """
    placement = plan(config)
    counts: dict[Kind, int] = {"rollout": len(placement.rollout), "learner": len(placement.learner)}
    return [
        ActorRequest(kind, number, share.cpus, share.gpus, f"--{kind}.num-cpus", most=number)
        for kind, number in counts.items()
        for share in (placement.shares[kind],)
    ]


def own_service(config: OnlineDpoConfig, port: int) -> ServeConfig:
    """Settings of the reward service that an online DPO run starts for its own length.

    Args:
        port: of this machine, free.
    """
    own = config.service
    return ServeConfig.load(
        None,
        {
            "model": config.reward_model,
            "port": port,
            "too_long": "cut",
            "engine": own.engine,
            "dtype": own.dtype,
            "replicas": own.replicas,
            "num_cpus": own.num_cpus,
            "num_gpus": own.num_gpus,
        },
    )
