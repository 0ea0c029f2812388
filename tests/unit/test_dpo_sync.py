"""New weights reach every engine, in an order in which no side waits for one that has not been called, and turns are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from wildreward_ray.cluster.weight_transfer import whole
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.train import LoraSection
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.policy.adapters import add_adapters, policy_weights
from wildreward_ray.policy.pairs import Sample, SampleReward
from wildreward_ray.reward.parallel import Layout, World
from wildreward_ray.stages import dpo_together
from wildreward_ray.stages.dpo_loop import Loop
from wildreward_ray.stages.dpo_rollout import Rollout, RolloutPool
from wildreward_ray.stages.dpo_sending import WeightSending, own_tensors
from wildreward_ray.stages.dpo_sync import WeightSync, weight_sync
from wildreward_ray.stages.prompts import Prompt

REPLICAS = 2
# Under nccl each of them goes on only when all members of the group have been called.
MEETINGS = ({"open_sender", "open_transfer"}, {"send", "receive"})


class Cluster:
    """Rollout actors and learner workers in this process. Calls of one side run one after another, as in a Ray actor.

    Attributes:
        log: (side, method, arguments) in the order in which they began.
        stuck: methods of sides that never come back.
        lost: sides that are gone.
    """

    def __init__(self, transfer: Any, *, colocated: bool = False) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.stuck: set[tuple[str, str]] = set()
        self.lost: set[str] = set()
        self.version = 0
        self.nccl = transfer == "nccl"
        self._turns: dict[str, asyncio.Lock] = {}
        self._met: dict[int, set[str]] = {0: set(), 1: set()}
        self._arrived = asyncio.Condition()
        self.started = [0] * REPLICAS
        self.pool = RolloutPool(self._start, REPLICAS, max_restarts=-1)
        self.sync: WeightSync = weight_sync(transfer, colocated=colocated, pool=self.pool, learner=self)  # type: ignore[arg-type]
        self.pool.sync = self.sync

    def _start(self, replica: int) -> Any:
        self.started[replica] += 1
        return Actor(self, f"r{replica}{'abc'[self.started[replica] - 1]}")

    def refs(self, method: str, *args: Any) -> list[asyncio.Task[Any]]:
        return [self.call(f"L{rank}", method, *args) for rank in range(REPLICAS)]

    def weights_ref(self) -> Any:
        self.log.append(("L0", "weights"))
        return f"weights {self.version}"

    def call(self, side: str, method: str, *args: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(self._run(side, method, args))

    async def _run(self, side: str, method: str, args: tuple[Any, ...]) -> Any:
        async with self._turns.setdefault(side, asyncio.Lock()):
            if side in self.lost:
                raise RayActorError(error_msg=f"{side} is gone")
            self.log.append((side, method, *args))
            if (side, method) in self.stuck:
                await asyncio.Event().wait()
            await self._meet(side, method)
            await asyncio.sleep(0)
            if method == "prepare_sender":
                return [f"info {replica}" for replica in range(REPLICAS)]
            return f"version {self.version} of {side}" if method == "announce" else None

    async def _meet(self, side: str, method: str) -> None:
        for number, meeting in enumerate(MEETINGS):
            if self.nccl and method in meeting:
                here = self._met[number]
                async with self._arrived:
                    here.add(side)
                    self._arrived.notify_all()
                    await self._arrived.wait_for(lambda: len(here) % (2 * REPLICAS) == 0)  # noqa: B023
                    here.clear()

    def learn(self) -> None:
        """An update, without what it computes."""
        self.version += 1
        self.sync.learnt()

    def of(self, side: str) -> list[Any]:
        """What a side was asked for, since it was asked about last."""
        found = [entry[1:] if len(entry) > 2 else entry[1] for entry in self.log if entry[0] == side]
        self.log = [entry for entry in self.log if entry[0] != side]
        return found


class Actor:
    """The handle of a rollout actor."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *args: self.cluster.call(self.name, method, *args))


@pytest.fixture(autouse=True)
def _short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo_together, "TIMEOUT_S", 2.0)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_reload_asks_for_weights_before_the_next_update_and_lets_the_learner_go_on() -> None:
    async def main() -> None:
        cluster = Cluster("reload")
        await cluster.sync.give()
        assert (cluster.sync.due, cluster.log) == (False, [])
        async with cluster.sync.learning():
            cluster.learn()
        assert cluster.log == [("L0", "weights")]
        assert cluster.sync.due
        async with cluster.sync.learning():  # the next update is at work meanwhile
            cluster.version += 1
            await cluster.sync.give()
        assert (cluster.sync.given, cluster.sync.due) == (1, False)
        for actor in ("r0a", "r1a"):
            assert cluster.of(actor) == [("load", "weights 1", 1)]

    run(main())


def test_reload_gives_weights_again_to_engines_that_have_them_and_after_a_checkpoint_was_loaded() -> None:
    async def main() -> None:
        cluster = Cluster("reload")
        cluster.version = cluster.sync.newest = 7
        await cluster.sync.give()
        await cluster.sync.give()
        assert cluster.of("r0a") == [("load", "weights 7", 7)] * 2
        assert cluster.of("L0") == ["weights"]

    run(main())


def test_an_actor_replaced_under_reload_gets_what_the_others_have_and_not_what_is_newest() -> None:
    async def main() -> None:
        cluster = Cluster("reload")
        await cluster.sync.replaced(0)
        assert cluster.log == []
        cluster.learn()
        await cluster.sync.give()
        cluster.learn()
        await cluster.sync.replaced(1)
        assert cluster.of("r1a") == [("load", "weights 1", 1)] * 2

    run(main())


def test_an_actor_that_is_lost_while_it_loads_is_replaced_and_loads() -> None:
    async def main() -> None:
        cluster = Cluster("reload")
        cluster.learn()
        cluster.lost.add("r1a")
        await cluster.sync.give()
        assert cluster.of("r0a") == [("load", "weights 1", 1)]
        assert cluster.of("r1b") == ["__ray_ready__", ("load", "weights 1", 1)]

    run(main())


def test_nccl_calls_both_sides_before_it_waits_for_either_and_makes_its_group_once() -> None:
    async def main() -> None:
        cluster = Cluster("nccl")
        await cluster.sync.give()
        assert cluster.log == []
        cluster.learn()
        await cluster.sync.give()
        each_time = ["announce", "send", "release"]
        for rank in ("L0", "L1"):
            assert cluster.of(rank) == [("prepare_sender", "nccl"), "open_sender", *each_time]
        for replica in range(REPLICAS):
            receive = ("receive", "version 1 of L0", 1)
            assert cluster.of(f"r{replica}a") == ["__ray_ready__", ("open_transfer", f"info {replica}"), receive]
        cluster.learn()
        await cluster.sync.give()
        assert cluster.of("L1") == each_time
        assert cluster.of("r1a") == ["__ray_ready__", ("receive", "version 2 of L0", 2)]
        assert (cluster.sync.given, cluster.sync.due) == (2, False)

    run(main())


def test_nccl_waits_for_an_update_at_work_and_gives_what_it_made_under_its_version() -> None:
    async def main() -> None:
        cluster = Cluster("nccl")
        cluster.learn()
        async with cluster.sync.learning():
            giving = asyncio.create_task(cluster.sync.give())
            await asyncio.sleep(0.05)
            assert not giving.done()
            assert "announce" not in {entry[1] for entry in cluster.log}
            cluster.learn()
        await giving
        assert cluster.sync.given == 2
        assert cluster.of("r0a")[-1] == ("receive", "version 2 of L0", 2)

    run(main())


def test_under_nccl_an_update_waits_until_what_was_announced_is_let_go() -> None:
    async def main() -> None:
        cluster = Cluster("nccl")
        cluster.learn()
        giving = asyncio.create_task(cluster.sync.give())
        await asyncio.sleep(0)
        async with cluster.sync.learning():
            assert cluster.of("L0")[-1] == "release"
        await giving

    run(main())


def test_an_actor_lost_between_transfers_is_replaced_and_all_meet_in_a_new_group() -> None:
    async def main() -> None:
        cluster = Cluster("nccl")
        cluster.learn()
        await cluster.sync.give()
        cluster.log.clear()
        cluster.lost.add("r1a")
        await cluster.sync.give()
        assert cluster.of("r0a") == ["__ray_ready__", ("open_transfer", "info 0"), ("receive", "version 1 of L0", 1)]
        opened = [("open_transfer", "info 1"), ("receive", "version 1 of L0", 1)]
        assert [call for call in cluster.of("r1b") if call != "__ray_ready__"] == opened
        assert cluster.of("L0") == [("prepare_sender", "nccl"), "open_sender", "announce", "send", "release"]
        cluster.log.clear()
        # Whoever met the same loss while sampling finds the weights there.
        await cluster.sync.replaced(1)
        assert cluster.log == []

    run(main())


def test_actors_lost_while_sampling_get_weights_in_one_new_group_after_the_others_are_idle() -> None:
    async def main() -> None:
        cluster = Cluster("nccl")
        cluster.learn()
        await cluster.sync.give()
        cluster.lost |= {"r0a", "r1a"}
        cluster.log.clear()

        async def sample_again(replica: int) -> None:
            lost = cluster.pool.actors[replica]
            await cluster.pool._start_again(replica, lost, RayActorError())
            await cluster.sync.replaced(replica)
            await cluster.pool.actors[replica].sample.remote()

        await asyncio.gather(*(sample_again(replica) for replica in range(REPLICAS)))
        for replica in range(REPLICAS):
            calls = [call for call in cluster.of(f"r{replica}b") if call != "__ray_ready__"]
            assert calls == [("open_transfer", f"info {replica}"), ("receive", "version 1 of L0", 1), "sample"]
        assert cluster.of("L0").count("send") == 1

    run(main())


@pytest.mark.parametrize(
    ("stuck", "named"),
    [
        (("L1", "announce"), "learner worker 1 did not come"),
        (("L1", "release"), "learner worker 1 did not come"),
        # All of a group wait for the one that does not come, so all are named.
        (("r1a", "receive"), "learner worker 0, learner worker 1, rollout actor 0, rollout actor 1 did not come"),
    ],
)
def test_sides_that_are_not_through_in_time_are_named_with_the_flag(
    stuck: tuple[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpo_together, "TIMEOUT_S", 0.1)

    async def main() -> None:
        cluster = Cluster("nccl")
        cluster.stuck.add(stuck)
        cluster.learn()
        with pytest.raises(UserError, match=rf"not through after 0\.1 s: {named}") as caught:
            await cluster.sync.give()
        assert caught.value.flag == "--weights"
        assert cluster.sync.due

    run(main())


def test_a_side_lost_during_a_broadcast_ends_the_run_with_its_name() -> None:
    async def main() -> None:
        cluster = Cluster("nccl")
        cluster.learn()
        await cluster.sync.give()
        announce = cluster.sync._learner.refs  # type: ignore[attr-defined]

        def lose(method: str, *args: Any) -> Any:
            cluster.lost |= {"r1a"} if method == "send" else set()
            return announce(method, *args)

        cluster.refs = lose  # type: ignore[method-assign]
        with pytest.raises(WildRewardError, match=r"rollout actor 1 was lost.*r1a is gone"):
            await cluster.sync.give()

    run(main())


def test_an_error_of_one_side_comes_without_waiting_for_the_others() -> None:
    async def fails() -> None:
        raise UserError("lacks 1 of 3 tensors", flag="--policy")

    async def main() -> None:
        with pytest.raises(UserError, match="lacks 1 of 3"):
            await asyncio.wait_for(dpo_together.through({"a": asyncio.Event().wait(), "b": fails()}), 1)

    run(main())


def test_engines_asleep_get_weights_of_their_own_gpus_learner_after_it_made_room() -> None:
    async def main() -> None:
        cluster = Cluster("ipc", colocated=True)
        await cluster.sync.give()
        assert cluster.log == []
        async with cluster.sync.learning():
            assert sorted(cluster.log) == [("r0a", "sleep"), ("r1a", "sleep")]
            cluster.learn()
        await cluster.sync.give()
        order = [entry[1] for entry in cluster.log if entry[1] != "sleep"]
        assert order.index("make_room") < order.index("announce") < order.index("wake_and_receive")
        assert order.index("release") > len(order) - 1 - order[::-1].index("wake_and_receive")
        for replica in range(REPLICAS):
            calls = cluster.of(f"r{replica}a")
            assert calls[-1] == ("wake_and_receive", f"version 1 of L{replica}", 1)
            assert ("open_transfer", f"info {replica}") in calls
        assert cluster.of("L1") == [("prepare_sender", "ipc"), "open_sender", "make_room", "announce", "release"]

    run(main())


@pytest.mark.parametrize("transfer", ["ipc", "reload"])
def test_weights_follow_every_sleep_also_where_nothing_was_learnt(transfer: str) -> None:
    async def main() -> None:
        cluster = Cluster(transfer, colocated=True)
        async with cluster.sync.learning():
            pass
        due_before = cluster.sync.due
        await cluster.sync.give()
        assert (due_before, cluster.sync.due) == (True, False)
        calls = [name for name, *_ in (c if isinstance(c, tuple) else (c,) for c in cluster.of("r0a"))]
        assert calls[0] == "sleep"
        assert calls[-1] == ("wake_and_receive" if transfer == "ipc" else "wake_and_load")

    run(main())


@pytest.mark.parametrize("transfer", ["ipc", "reload"])
def test_an_engine_replaced_while_others_sample_or_while_it_wakes_gets_the_weights_alone(transfer: str) -> None:
    async def main() -> None:
        cluster = Cluster(transfer, colocated=True)
        cluster.learn()
        cluster.lost.add("r1a")
        await cluster.sync.give()
        assert cluster.started == [1, 2]
        woken = ("wake_and_receive", "version 1 of L1", 1) if transfer == "ipc" else ("wake_and_load", "weights 1", 1)
        assert cluster.of("r1b")[-2:] == ["sleep", woken]
        cluster.of("r0a")
        cluster.lost.add("r1b")
        await cluster.pool._start_again(1, cluster.pool.actors[1], RayActorError())
        await cluster.sync.replaced(1)
        # One that was started just now is awake: it sleeps first, and under ipc hears of the transfer.
        opened = [("open_transfer", "info 1")] if transfer == "ipc" else []
        assert cluster.of("r1c") == ["__ray_ready__", *opened, "sleep", woken]
        assert cluster.of("r0a") == []

    run(main())


def test_an_engine_that_does_not_wake_in_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo_together, "TIMEOUT_S", 0.1)

    async def main() -> None:
        cluster = Cluster("ipc", colocated=True)
        cluster.stuck.add(("r0a", "wake_and_receive"))
        cluster.learn()
        with pytest.raises(UserError, match="rollout actor 0 did not come"):
            await cluster.sync.give()

    run(main())


def config_of(**settings: Any) -> OnlineDpoConfig:
    base = {"policy": "p", "reward_url": "http://localhost", "prompts": "p", "output": "o", "prompts_per_step": 1}
    return OnlineDpoConfig.model_validate({**base, **settings})


class Learner:
    """What a loop asks of a learner group; a step takes a while."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.stepping = cluster, False

    def step_refs(self, ids: Any, pairs: Any, *, beta: float) -> list[asyncio.Task[Any]]:
        return [asyncio.create_task(self._step())]

    async def _step(self) -> dict[str, float]:
        self.stepping = True
        self.cluster.log.append(("L0", "step"))
        await asyncio.sleep(0.02)
        self.cluster.version += 1
        self.stepping = False
        return {"tokens": 1}

    def kl(self) -> float:
        self.cluster.log.append(("L0", "kl"))
        return 0.5


def loop_of(cluster: Cluster, config: OnlineDpoConfig, equal: Sequence[int] = ()) -> tuple[Loop, Learner]:
    """A loop whose steps each have one pair, but those in `equal`, whose rewards are equal."""
    samples = (Sample("a good one", (1, 2), True), Sample("something else", (3,), True))
    steps: list[int] = []

    async def sample(prompts: Any, step: int) -> Any:
        cluster.log.append(("pool", "sample", step, cluster.sync.given))
        steps.append(step)
        await asyncio.sleep(0)
        yield Rollout(0, samples, cluster.sync.given)

    class Scorer:
        async def score(self, prompt: Prompt, given: Sequence[Sample]) -> list[SampleReward]:
            return [SampleReward(3.0), SampleReward(3.0 if steps[-1] in equal else 1.0)]

    cluster.pool.sample = sample  # type: ignore[method-assign]
    prompts = [Prompt((), str(i), (i,)) for i in range(9)]
    learner = Learner(cluster)
    return Loop(config, prompts, cluster.pool, learner, Scorer()), learner  # type: ignore[arg-type]


def test_colocated_engines_sleep_while_the_learner_works_and_have_weights_before_every_sample() -> None:
    async def main() -> None:
        cluster = Cluster("reload", colocated=True)
        config = config_of(
            staleness=0, placement={"mode": "colocated"}, rollout={"replicas": 2}, learner={"workers": 2}
        )
        loop, learner = loop_of(cluster, config, equal=(2,))
        rows: list[dict[str, Any]] = []
        await loop.sample_and_score([Prompt((), "held out", (9,))], 99)
        await loop.in_turn(learner.kl)
        await loop.segment(3, rows.append, asyncio.Event())
        await loop.sample_and_score([Prompt((), "held out", (9,))], 99)
        assert [row["policy_version"] for row in rows] == [0, 1, 1]
        assert [row["pairs"] for row in rows] == [1, 0, 1]
        asleep, sampled = False, 0
        for side, call, *_ in cluster.log:
            if side == "r1a":
                asleep = call == "sleep"
            elif call in ("step", "kl"):
                assert asleep
            elif call == "sample":
                assert not asleep
                sampled += 1
        assert sampled == 5
        # The step without a pair needed no turn of the learner.
        assert cluster.of("r1a").count("sleep") > 0
        assert [c for c in cluster.of("L0") if c in ("step", "kl")] == ["kl", "step", "step"]

    run(main())


@pytest.mark.parametrize("transfer", ["reload", "nccl"])
def test_a_loop_that_samples_ahead_draws_with_the_same_versions_whatever_the_way(transfer: str) -> None:
    async def main() -> None:
        cluster = Cluster(transfer)
        loop, learner = loop_of(cluster, config_of(staleness=1))
        sending = cluster.call

        def call(side: str, method: str, *args: Any) -> asyncio.Task[Any]:
            # The learner's tensors must not change while they are sent.
            assert method not in ("announce", "send", "release") or not learner.stepping
            return sending(side, method, *args)

        cluster.call = call  # type: ignore[method-assign]
        rows: list[dict[str, Any]] = []
        await loop.segment(5, rows.append, asyncio.Event())
        assert [row["policy_version"] for row in rows] == [0, 0, 1, 2, 3]
        assert [row["staleness"] for row in rows] == [0, 1, 1, 1, 1]
        assert loop.updates == 5
        await loop.synchronise()
        assert cluster.sync.given == 5

    run(main())


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=tied))


def joined_experts() -> MixtralForCausalLM:
    """Its module holds the experts of a layer in one tensor, its checkpoint each of them apart."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads))


class Sending(WeightSending):
    """The methods under test, without the rest of a learner worker."""

    def __init__(self, module: torch.nn.Module, policy: str = "", rank: int = 0, sharded: bool = False) -> None:
        super().__init__()
        self.config, self.world = config_of(policy=policy or "p", rollout={"replicas": 2}), World(rank, 2)
        self.layout = Layout(module, module, self.world, sharded=sharded)


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_models_own_tensors_leave_and_are_those_of_an_export(tied: bool, tmp_path: Path) -> None:
    llama(tied=tied).save_pretrained(tmp_path)
    module = AutoModelForCausalLM.from_pretrained(tmp_path)
    own = own_tensors(module)
    assert own is not None
    assert all(tensor.data_ptr() == module.get_parameter(name).data_ptr() for name, tensor in own)
    exported, sent = policy_weights(module), dict(whole(own, torch.bfloat16))
    assert sent.keys() == exported.keys()
    assert all(torch.equal(sent[name], exported[name]) for name in exported)


def test_a_module_whose_checkpoint_holds_other_tensors_sends_none_of_its_own() -> None:
    assert own_tensors(add_adapters(llama(), LoraSection(rank=2))) is None
    experts = joined_experts()
    assert set(policy_weights(experts)) - set(experts.state_dict())
    assert own_tensors(experts) is None


@pytest.mark.parametrize("rank", [0, 2])
def test_what_is_announced_is_the_policy_with_its_adapters_merged_under_its_checkpoints_names(
    rank: int, tmp_path: Path
) -> None:
    module: Any = llama()
    module.save_pretrained(tmp_path)
    if rank:
        module = add_adapters(module, LoraSection(rank=rank))
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    sending = Sending(module, str(tmp_path))
    infos = sending.prepare_sender("nccl")
    # Rank 0 of the group is the learner.
    assert [info["rank_offset"] for info in infos] == [1, 2]
    exported = policy_weights(module)
    info = sending.announce()
    assert info is not None
    assert set(info["names"]) == exported.keys()
    assert set(info["dtype_names"]) == {"bfloat16"}
    sent = dict(whole(sending._outgoing, torch.bfloat16))
    assert all(torch.equal(sent[name], exported[name]) for name in exported)
    sending.release()
    assert sending._outgoing == []


@pytest.mark.parametrize("sharded", [False, True])
def test_workers_that_do_not_send_help_to_gather_only_where_weights_are_sharded(
    sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = Sending(llama(), rank=1, sharded=sharded)
    assert sending.prepare_sender("nccl") == []
    assert sending.announce() is None
    gathered: list[str] = []

    def gather(named: Any, dtype: torch.dtype) -> Any:
        for name, tensor in named:
            gathered.append(name)
            yield name, tensor

    monkeypatch.setattr("wildreward_ray.stages.dpo_sending.whole", gather)
    sending.send()
    # In the order in which rank 0 sends them: each gather needs all workers at the same tensor.
    assert gathered == ([name for name, _ in own_tensors(llama()) or ()] if sharded else [])
