"""`wildreward serve`: a reward model in, rewards over HTTP out, by Ray Serve.

What the service does with a request is in `serve_app`; here it is started, watched and stopped.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from ray import serve

from wildreward_ray.cluster.session import ActorRequest, check_resources, ray_errors, start_ray
from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.stages.scoring import check_checkpoint, choose_engine
from wildreward_ray.stages.serve_app import API_CPUS, RewardApi, RewardEngine

APP = "wildreward"
_START_TIMEOUT_S = 600.0


@contextmanager
def service(config: ServeConfig) -> Iterator[str]:
    """Run the reward service for the length of a context. Gives its base URL.

    Raises:
        UserError: an unusable checkpoint, a busy port, a missing token, or too small a cluster.
        WildRewardError: the service did not come up.
    """
    check_checkpoint(config)
    token = _token(config)
    _check_port(config)
    with ray_errors(config.model):
        start_ray()
        check_resources(
            [
                ActorRequest("engine", config.replicas, config.num_cpus, config.num_gpus, "--num-cpus"),
                ActorRequest("api", 1, API_CPUS, 0.0, "--num-cpus"),
            ],
            task_cpus=0.0,
        )
        try:
            _deploy(config, token)
            url = f"http://{config.host if config.host != '0.0.0.0' else '127.0.0.1'}:{config.port}"
            _wait_until_healthy(url)
            yield url
        finally:
            serve.shutdown()


def run(config: ServeConfig) -> None:
    """Serve until the process is told to stop (SIGINT or SIGTERM)."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    with service(config) as url:
        engine = choose_engine(config)
        print(f"serving {config.model} with the {engine} engine at {url} (docs at {url}/docs)", flush=True)
        while not stop.wait(1.0):
            pass
    print("stopped", flush=True)


def _deploy(config: ServeConfig, token: str | None) -> None:
    options = {"num_cpus": config.num_cpus, **({"num_gpus": config.num_gpus} if config.num_gpus else {})}
    engine = serve.deployment(
        RewardEngine,
        num_replicas=config.replicas,
        ray_actor_options=options,
        max_ongoing_requests=2 * config.max_batch_items,
        max_queued_requests=config.max_queued,
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port})
    try:
        serve.run(RewardApi.bind(config, token, engine.bind(config)), name=APP, route_prefix="/")  # type: ignore[attr-defined]
    except RuntimeError as e:
        # Serve only says that a replica failed; the reason is in the application's status.
        status = serve.status().applications.get(APP)
        reasons = [d.message for d in status.deployments.values() if d.message] if status else []
        raise WildRewardError(
            f"the reward service did not start: {' '.join((reasons or [str(e)])[0].split())[:600]}"
        ) from e


def _wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            reply = httpx.get(f"{url}/healthz", timeout=30)
            if reply.status_code == 200:
                return
            last = f"HTTP {reply.status_code}"
        except httpx.HTTPError as e:
            last = str(e)
        time.sleep(0.5)
    raise WildRewardError(f"{url}/healthz did not answer within {_START_TIMEOUT_S:.0f} s: {last}")


def _token(config: ServeConfig) -> str | None:
    if config.auth_token_env is None:
        return None
    token = os.environ.get(config.auth_token_env)
    if not token:
        raise UserError(f"the environment variable {config.auth_token_env!r} is empty", flag="--auth-token-env")
    return token


def _check_port(config: ServeConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as e:
            raise UserError(f"port {config.port} of {config.host} can't be used: {e.strerror}", flag="--port") from e


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
