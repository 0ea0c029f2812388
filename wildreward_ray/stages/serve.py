"""`wildreward serve`: a reward model in, rewards over HTTP out, by Ray Serve.

The service is two Serve applications: the engine replicas (`serve_engine`) and the API in front of them (`serve_api`). So a
new model is an engine application of its own, which takes over when it has proved itself: see `serve_update`.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from wildreward_ray.cluster.session import check_resources, ray_errors, start_ray
from wildreward_ray.cluster.waiting import watching
from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.stages import requests
from wildreward_ray.stages.scoring import check_checkpoint, choose_engine
from wildreward_ray.stages.serve_api import RewardApi
from wildreward_ray.stages.serve_engine import RewardEngine

APP = "wildreward"
ENGINE_APP = "wildreward-engine"
_START_TIMEOUT_S = 600.0
_HEALTH_PERIOD_S = 5.0
_HEALTH_TIMEOUT_S = 30.0


@contextmanager
def service(config: ServeConfig, engine: type = RewardEngine) -> Iterator[str]:
    """Run the reward service for the length of a context. Gives its base URL.

    Args:
        engine: the class of the engine replicas.

    Raises:
        UserError: an unusable checkpoint, a busy port, a missing token, or too small a cluster.
        WildRewardError: the service did not come up.
    """
    check_checkpoint(config)
    token_of(config)
    _check_port(config)
    with ray_errors(config.model):
        start_ray()
        check_resources(requests.serve(config), task_cpus=0.0)
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port})
            # The API first: whoever asks while the model loads is told so, and to come back.
            deploy_api(config, ENGINE_APP)
            deploy_engine(config, ENGINE_APP, engine)
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
        address = ray.get_runtime_context().gcs_address
        # Ray sets this when it starts a cluster that asks for a token; who joins by address has to say it.
        token = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
        print(f"serving {config.model} with the {engine} engine at {url} (API at {url}/docs)", flush=True)
        print(
            f"another model takes over by: {token}RAY_ADDRESS={address} wildreward update-model --model PATH",
            flush=True,
        )
        while not stop.wait(1.0):
            pass
    print("stopped", flush=True)


def engine_application(args: dict[str, Any]) -> serve.Application:
    """The engine replicas, for a Serve config file.

    Args:
        args: settings of `wildreward serve`.

    Raises:
        UserError: a setting that does not exist or breaks its rule, or an unusable checkpoint.
    """
    config = ServeConfig.load(None, args)
    check_checkpoint(config)
    return _engine(config, RewardEngine)


def api_application(args: dict[str, Any]) -> serve.Application:
    """The API in front of the engine application, for a Serve config file.

    Args:
        args: settings of `wildreward serve`, the same as the engine's; and `engine_app`, its application's name.

    Raises:
        UserError: see `engine_application`; also where the token's variable is empty.
    """
    settings = dict(args)
    engine_app = settings.pop("engine_app", ENGINE_APP)
    return _api(ServeConfig.load(None, settings), engine_app)


def deploy_engine(config: ServeConfig, app: str, engine: type = RewardEngine) -> None:
    """Start an engine application and wait until its replicas are up.

    Raises:
        WildRewardError: a replica did not come up; says why.
    """
    _run(_engine(config, engine), app, None)


def deploy_api(config: ServeConfig, engine_app: str) -> None:
    """Start the API, or replace the one that runs by one that asks another engine application.

    Raises:
        WildRewardError: it did not come up; says why.
    """
    _run(_api(config, engine_app), APP, "/")


def why_not_up(app: str) -> str:
    """What Serve has to say about an application that doesn't come up, or ""."""
    status = serve.status().applications.get(app)
    if status is None:
        return ""
    reasons = [d.message for d in status.deployments.values() if d.message] or [status.message]
    # Traces come first in it, the error itself last.
    return " ".join(reasons[0].split())[-600:]


def token_of(config: ServeConfig) -> str | None:
    """The bearer token clients must send, or None where none is asked for.

    Raises:
        UserError: its environment variable is empty.
    """
    if config.auth_token_env is None:
        return None
    token = os.environ.get(config.auth_token_env)
    if not token:
        raise UserError(f"the environment variable {config.auth_token_env!r} is empty", flag="--auth-token-env")
    return token


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(application: serve.Application, name: str, route: str | None) -> None:
    try:
        with watching("serve", lambda: 0):
            serve.run(application, name=name, route_prefix=route)
    except RuntimeError as e:
        # Serve only says that a replica failed; the reason is in the application's status.
        raise WildRewardError(f"the reward service did not start: {why_not_up(name) or e}") from e


def _engine(config: ServeConfig, engine: type) -> serve.Application:
    least, most = config.replicas
    router = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
    scaled: dict[str, Any] = {"num_replicas": least}
    if most > least:
        scaling = AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            target_ongoing_requests=config.target_in_flight,
            upscale_delay_s=config.scale_up_delay_s,
            downscale_delay_s=config.scale_down_delay_s,
        )
        scaled = {"autoscaling_config": scaling}
    if config.routing == "prefix" and most > 1:
        scaled["request_router_config"] = RequestRouterConfig(request_router_class=router)
    return serve.deployment(
        engine,
        name="RewardEngine",
        ray_actor_options={"num_cpus": config.num_cpus, **({"num_gpus": config.num_gpus} if config.num_gpus else {})},
        # What is above this number waits in the API for whichever replica has room first.
        max_ongoing_requests=4 * config.target_in_flight,
        graceful_shutdown_timeout_s=config.drain_s,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        logging_config=LoggingConfig(enable_access_log=False),
        **scaled,
    ).bind(config)


def _api(config: ServeConfig, engine_app: str) -> serve.Application:
    return serve.deployment(
        serve.ingress()(RewardApi),
        name="RewardApi",
        # For another model its replicas are replaced: new ones first, old ones when they have answered what they have.
        max_surge_percent=100,
        num_replicas=config.api_replicas,
        ray_actor_options={"num_cpus": requests.API_CPUS},
        user_config={"config": config.model_dump(mode="json"), "engine_app": engine_app},
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=config.drain_s,
        health_check_period_s=_HEALTH_PERIOD_S,
        logging_config=LoggingConfig(enable_access_log=False),
    ).bind(config, token_of(config))


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


def _check_port(config: ServeConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as e:
            raise UserError(f"port {config.port} of {config.host} can't be used: {e.strerror}", flag="--port") from e
