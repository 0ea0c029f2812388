"""The watch on a stage: when it speaks, what it says of what waits, and that it ends with the stage and leaves it be."""

from __future__ import annotations

import json
import re
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.core.generated.autoscaler_pb2 import (
    AutoscalingState,
    BundleSelector,
    ClusterResourceState,
    FailedInstanceRequest,
    GangResourceRequest,
    GetClusterStatusReply,
    NodeState,
    NodeStatus,
    PendingInstance,
    PendingInstanceRequest,
    ResourceRequest,
    ResourceRequestByCount,
)
from ray.core.generated.common_pb2 import Address, LabelSelector, LabelSelectorConstraint, LabelSelectorOperator
from ray.core.generated.gcs_pb2 import ActorTableData
from ray.data.exceptions import ExecutionTimeoutError

from wildreward_ray.cluster import diagnosis, progress, waiting
from wildreward_ray.cluster.diagnosis import Diagnosis, tell
from wildreward_ray.cluster.growth import Growth
from wildreward_ray.cluster.waiting import Silence, watching
from wildreward_ray.core.errors import UserError, WildRewardError

HAVE = {"CPU": 8.0, "GPU": 2.0}


def test_a_line_is_due_after_silences_that_double_and_a_move_begins_anew() -> None:
    silence = Silence(300, now=0.0)
    due = [t for t in range(10, 2600, 10) if silence.heard(7, float(t)) is not None]
    assert due == [300, 600, 1200, 2400]
    assert silence.heard(8, 2600.0) is None
    assert silence.heard(8, 2890.0) is None
    assert silence.heard(8, 2900.0) == 300


def test_a_count_that_moves_is_never_spoken_of_and_a_long_look_makes_one_line() -> None:
    silence = Silence(300, now=0.0)
    assert [silence.heard(t, float(t)) for t in range(0, 5000, 290)] == [None] * 18
    silence = Silence(300, now=0.0)
    assert silence.heard(0, 1300.0) == 1300
    assert silence.heard(0, 1310.0) is None


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("watch-")]


class Told:
    """A diagnosis that lets a test wait until it has been asked for some times."""

    def __init__(self, text: str, times: int = 1) -> None:
        self._text, self._left = text, times
        self._enough = threading.Event()

    def __call__(self) -> str:
        self._left -= 1
        if self._left <= 0:
            self._enough.set()
        return self._text

    def wait(self) -> None:
        assert self._enough.wait(30)
        time.sleep(0.05)  # what was asked for is printed after it


def test_the_watch_speaks_while_nothing_moves_and_ends_with_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told("1 task waits", times=2)
    with watching("judge", lambda: 3, quiet_s=0.02, diagnose=told):
        assert threads() == ["watch-judge"]
        told.wait()
    assert threads() == []
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    for line in lines:
        assert re.fullmatch(r"\[judge\] nothing has moved for \d+ s: 1 task waits", line)
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_the_watch_is_still_while_counts_move(capsys: pytest.CaptureFixture[str]) -> None:
    looks, enough = list[int](), threading.Event()

    def moves() -> int:
        looks.append(0)
        if len(looks) == 12:
            enough.set()
        return len(looks)

    with watching("judge", moves, quiet_s=0.04, diagnose=lambda: "never asked"):
        assert enough.wait(30)
    assert capsys.readouterr().err == ""


def test_a_stage_with_a_progress_line_has_its_count_watched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told, done, killed = Told("1 task waits"), [0], list[Any]()
    counter = SimpleNamespace(done=SimpleNamespace(remote=lambda: done[0]))
    ray = SimpleNamespace(
        get=lambda value: value,
        kill=killed.append,
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "00" * 28),
    )
    monkeypatch.setattr(progress, "ray", ray)
    monkeypatch.setattr(
        progress, "_Counter", SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: counter))
    )
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.01)
    monkeypatch.setattr(waiting, "Diagnosis", lambda: told)
    monkeypatch.setenv(waiting.QUIET_S, "0.05")
    with progress.Progress("judge", "interactions"):
        told.wait()
    assert "[judge] nothing has moved" in capsys.readouterr().err
    with pytest.raises(WildRewardError, match="judge: nothing moved; 1 task waits"), progress.Progress("judge", "rows"):
        raise ExecutionTimeoutError("nothing moved. And more")
    assert threads() == []
    assert killed == [counter, counter]


def test_the_error_of_a_run_that_ray_data_ends_carries_what_waited() -> None:
    timeout = ExecutionTimeoutError("Dataset execution made no progress for at least 1800s. No output was taken\nmore")
    with (
        pytest.raises(WildRewardError) as e,
        watching("judge", lambda: 3, quiet_s=60, diagnose=lambda: "1 actor waits for 8 GPUs"),
    ):
        raise timeout
    assert str(e.value) == ("judge: Dataset execution made no progress for at least 1800s; 1 actor waits for 8 GPUs")
    assert e.value.__cause__ is timeout
    assert threads() == []


def test_other_errors_pass_as_they_are_and_end_the_watch() -> None:
    told = UserError("bad row")
    with (
        pytest.raises(UserError) as e,
        watching("judge", lambda: 3, quiet_s=60, diagnose=lambda: pytest.fail("it must not be asked")),
    ):
        raise told
    assert e.value is told
    assert threads() == []


def test_the_silence_may_be_set_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(waiting.QUIET_S, "0.02")
    told = Told("x")
    with watching("judge", lambda: 3, diagnose=told):
        told.wait()
    assert "[judge] nothing has moved" in capsys.readouterr().err
    for bad in ("soon", "0", "-1", "inf", "nan"):
        monkeypatch.setenv(waiting.QUIET_S, bad)
        with pytest.raises(UserError, match=f"WILDREWARD_QUIET_S is '{bad}'"), watching("judge", lambda: 3):
            pytest.fail("the stage must not start")


def test_what_can_not_be_asked_is_said_and_does_not_end_the_watch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Told("", times=2)

    def down() -> Any:
        asked()
        raise ConnectionError("head gone\nand a traceback")

    monkeypatch.setattr(diagnosis, "_dead", dict)
    monkeypatch.setattr(diagnosis, "cluster_status", down)
    with watching("judge", lambda: 3, quiet_s=0.02, diagnose=Diagnosis()):
        asked.wait()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert {line.partition(" s: ")[2] for line in lines} == {"what waits can't be asked (ConnectionError: head gone)"}


def test_a_watch_that_speaks_to_programs_gives_the_diagnosis_a_field(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WILDREWARD_LOG", "json")
    told = Told("1 task waits")
    with watching("judge", lambda: 3, quiet_s=0.02, diagnose=told):
        told.wait()
    event = json.loads(capsys.readouterr().err.splitlines()[0])
    assert (event["stage"], event["event"], event["diagnosis"]) == ("judge", "quiet", "1 task waits")


def node(
    free: dict[str, float], total: dict[str, float], status: str = "RUNNING", labels: dict[str, str] | None = None
) -> NodeState:
    return NodeState(
        available_resources=free, total_resources=total, status=NodeStatus.Value(status), labels=labels or {}
    )


def asks(count: int, selector: LabelSelector | None = None, **resources: float) -> ResourceRequestByCount:
    request = ResourceRequest(resources_bundle=resources, label_selectors=[selector] if selector else [])
    return ResourceRequestByCount(request=request, count=count)


def reply(*pending: ResourceRequestByCount, **state: Any) -> GetClusterStatusReply:
    state.setdefault("node_states", [node({"CPU": 1}, {"CPU": 4, "GPU": 1}), node({}, {"CPU": 4, "GPU": 1})])
    return GetClusterStatusReply(
        cluster_resource_state=ClusterResourceState(pending_resource_requests=pending, **state)
    )


SOME_ID, NO_ID = b"\x01" * 28, b"\xff" * 28


def actor(
    name: str, node_id: bytes = b"", worker_id: bytes = b"", state: str = "PENDING_CREATION", **resources: float
) -> ActorTableData:
    """As Ray tells of it: it has a node from when it waits for room there, and a worker from when it has the room."""
    return ActorTableData(
        class_name=name,
        address=Address(node_id=node_id, worker_id=worker_id),
        state=ActorTableData.ActorState.Value(state),
        required_resources=resources,
    )


STATIC = Growth(False, HAVE)


def test_it_is_said_what_waits_what_is_free_and_that_no_autoscaler_can_help() -> None:
    line = tell(
        reply(asks(2, CPU=4, GPU=1), asks(1, CPU=1, memory=2.0**30)),
        [actor("MapWorker(MapBatches(JudgeActor))", SOME_ID, CPU=4, GPU=1)] * 2 + [actor("Refiner", SOME_ID, SOME_ID)],
        STATIC,
        [],
        [
            actor("Learner", SOME_ID, SOME_ID, "ALIVE", CPU_group_ab12=7, GPU_group_ab12=1),
            actor("Counter", SOME_ID, SOME_ID, "ALIVE"),
        ],
    )
    assert line == (
        "3 tasks or actors wait for room (2 x 4 CPUs + 1 GPU, 1 x 1 CPU + 1 GiB of memory); "
        "not placed: 2 x JudgeActor of 4 CPUs + 1 GPU; "
        "starting, e.g. loading a model: 1 x Refiner; "
        "free are 1 of 8 CPUs and 0 of 2 GPUs on 2 nodes; "
        "actors hold 1 x Learner of 7 CPUs + 1 GPU; "
        "no node that is there could hold 1 CPU + 1 GiB of memory, were it empty; "
        "the cluster has no autoscaler, so what waits stays until something is freed or a node is added"
    )


def test_nodes_that_died_are_named_and_hold_nothing() -> None:
    gone = node({"CPU": 64}, {"CPU": 64}, "DEAD")
    line = tell(reply(asks(1, CPU=8), node_states=[gone, node({}, {"CPU": 4})]), [], STATIC, ["10.0.0.3", "10.0.0.7"])
    assert "1 task or actor waits for room (1 x 8 CPUs)" in line
    assert "free are 0 of 4 CPUs and 0 of 0 GPUs on 1 node;" in line
    assert "no node that is there could hold 8 CPUs, were it empty" in line
    assert line.endswith("2 nodes lost since the stage began (10.0.0.3, 10.0.0.7)")


def test_nothing_that_waits_is_said_too_and_the_autoscaler_is_no_matter() -> None:
    assert tell(reply(), [], STATIC, []) == (
        "nothing waits for room, so what is placed is busy, starting or stuck; "
        "free are 1 of 8 CPUs and 0 of 2 GPUs on 2 nodes"
    )


def test_an_actor_without_a_node_waits_though_no_request_is_counted() -> None:
    for nothing in (b"", NO_ID):
        line = tell(reply(), [actor("Judge", nothing, nothing, GPU=8)], STATIC, [])
        assert line.startswith("not placed: 1 x Judge of 8 GPUs; ")
        assert "no node that is there could hold 8 GPUs, were it empty" in line
        assert "the cluster has no autoscaler" in line


def test_an_actor_with_a_node_and_no_worker_waits_for_room_where_such_a_request_waits_and_else_for_its_process() -> (
    None
):
    judge = actor("Judge", SOME_ID, NO_ID, CPU=1)
    line = tell(reply(asks(1, CPU=1)), [judge], STATIC, [])
    assert "; not placed: 1 x Judge of 1 CPU; " in line
    assert "starting" not in line
    line = tell(reply(), [judge], STATIC, [], [actor("Other", SOME_ID, SOME_ID, "ALIVE", CPU=8)])
    assert line == (
        "nothing waits for room, so what is placed is busy, starting or stuck; "
        "placed, and their process or its environment not up: 1 x Judge; "
        "free are 1 of 8 CPUs and 0 of 2 GPUs on 2 nodes"
    )


def test_an_actor_whose_arguments_are_not_there_waits_for_them_and_not_for_room() -> None:
    line = tell(reply(), [actor("Judge", NO_ID, NO_ID, "DEPENDENCIES_UNREADY", GPU=8)], STATIC, [])
    assert line.startswith("nothing waits for room")
    assert "; without their arguments: 1 x Judge; " in line
    assert "could hold" not in line


def test_a_placement_group_is_told_by_its_bundles_in_both_forms_of_ray() -> None:
    bundles = [ResourceRequest(resources_bundle={"CPU": 1, "GPU": 1}) for _ in range(4)]
    old, new = GangResourceRequest(requests=bundles), GangResourceRequest()
    new.bundle_selectors.append(BundleSelector(resource_requests=bundles))
    for gang in (old, new):
        line = tell(reply(pending_gang_resource_requests=[gang]), [], STATIC, [])
        assert line.startswith("1 placement group of 4 x 1 CPU + 1 GPU waits for room; free are")


def test_resources_in_a_placement_group_are_told_by_their_plain_names() -> None:
    inside = {"CPU_group_ab12": 2.0, "CPU_group_0_ab12": 2.0, "bundle_group_ab12": 0.001, "node:10.0.0.1": 0.001}
    line = tell(reply(asks(1, **inside)), [], STATIC, [])
    assert "1 task or actor waits for room (1 x 2 CPUs)" in line
    assert "could hold" not in line


def test_labels_that_are_asked_for_are_told_and_a_node_without_them_holds_nothing() -> None:
    without = LabelSelectorOperator.Value("LABEL_OPERATOR_NOT_IN")
    within = LabelSelectorOperator.Value("LABEL_OPERATOR_IN")
    selector = LabelSelector(
        label_constraints=[
            LabelSelectorConstraint(label_key="market", operator=within, label_values=["spot"]),
            LabelSelectorConstraint(label_key="zone", operator=without, label_values=["a"]),
        ]
    )
    nodes = [node({}, {"CPU": 4}), node({}, {"CPU": 4}, labels={"market": "spot", "zone": "a"})]
    line = tell(reply(asks(1, selector, CPU=1), node_states=nodes), [], STATIC, [])
    assert "(1 x 1 CPU with market=spot, zone!=a)" in line
    assert "no node that is there could hold 1 CPU with market=spot, zone!=a, were it empty" in line
    nodes.append(node({}, {"CPU": 4}, labels={"market": "spot", "zone": "b"}))
    assert "could hold" not in tell(reply(asks(1, selector, CPU=1), node_states=nodes), [], STATIC, [])


def test_the_labels_of_an_actor_that_waits_uncounted_are_told_as_a_reason() -> None:
    waits = actor("Judge", CPU=1)
    assert "could hold" not in tell(reply(), [waits], STATIC, [])
    waits.label_selector["market"] = "spot"
    assert "no node that is there could hold 1 CPU, were it empty" in tell(reply(), [waits], STATIC, [])


def test_what_the_autoscaler_is_about_is_told() -> None:
    growing = Growth(True, None)
    waits = reply(asks(1, GPU=8))
    assert "an autoscaler is at work (`ray status` on the head tells what it does)" in tell(waits, [], growing, [])
    assert "doesn't tell whether an autoscaler" in tell(waits, [], Growth(None, None), [])
    waits.autoscaling_state.CopyFrom(AutoscalingState())
    assert tell(waits, [], growing, []).endswith("; the autoscaler is bringing no node")
    waits.autoscaling_state.CopyFrom(
        AutoscalingState(
            pending_instance_requests=[PendingInstanceRequest(ray_node_type_name="gpu_spot", count=2)],
            pending_instances=[PendingInstance(ray_node_type_name="gpu_spot"), PendingInstance(ray_node_type_name="c")],
            infeasible_resource_requests=[ResourceRequest(resources_bundle={"GPU": 8})] * 2,
            failed_instance_requests=[
                FailedInstanceRequest(ray_node_type_name="gpu", count=1, reason="no capacity\n in zone")
            ],
        )
    )
    assert tell(waits, [], growing, []).endswith(
        "; the autoscaler is bringing 3 x gpu_spot, 1 x c; none of its node types, within their limits, holds 8 GPUs; "
        "it could not start 1 x gpu: no capacity in zone"
    )


def test_nodes_are_lost_only_since_the_stage_began(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    dead = {"a": "10.0.0.1"}
    monkeypatch.setattr(diagnosis, "_dead", lambda: dict(dead))
    monkeypatch.setattr(diagnosis, "cluster_status", reply)
    monkeypatch.setattr(diagnosis, "current_growth", lambda total: Growth(False, total))
    monkeypatch.setattr(diagnosis, "_actors_that_are", lambda states: [])
    monkeypatch.setattr(ray, "cluster_resources", lambda: HAVE)
    look = Diagnosis()
    assert "lost" not in look()
    dead["b"] = "10.0.0.2"
    assert look().endswith("1 node lost since the stage began (10.0.0.2)")


def test_many_kinds_of_requests_make_a_line_that_can_be_read() -> None:
    line = tell(reply(*(asks(1, CPU=n) for n in range(1, 8))), [], STATIC, [])
    assert "7 tasks or actors wait for room (1 x 1 CPU, 1 x 2 CPUs, 1 x 3 CPUs and 4 more)" in line
