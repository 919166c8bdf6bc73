"""
Run a night's prompts on two workers, break the services of the cluster, and compare bill, bucket and database.

Run by ``set-up.sh``. The bill is what the sandbox charged, the bucket is read through S3, and the journals are rows in
PostgreSQL. Order matters in one place: the last check inspects what all the others have left.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections import Counter, defaultdict
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from running_airflow import wait_until

from airflow_provider_imagen.sandbox import Fault

from .conftest import HOME, WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Cluster, Run


def instance_of(prompt: str) -> tuple[str, int]:
    """Return the task instance that a prompt belongs to."""
    _, task_id, map_index, _ = prompt.split()
    return task_id, int(map_index)


def json_lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


class Remains:
    """What a run has left behind: its bill, its bucket, its manifest and its failures."""

    def __init__(self, cluster: Cluster, run: Run) -> None:
        self.charges = {charge.inference_id: charge for charge in cluster.billed(run.dag_id)}
        self.summaries = run.summaries()
        objects = cluster.store.read_all(f"{run.dag_id}/")
        self.objects = {key.removeprefix(f"{run.dag_id}/"): data for key, data in objects.items()}
        self.lines = json_lines(self.objects["metadata.jsonl"])
        failures = [
            line
            for key, data in self.objects.items()
            if key.startswith(".imagen/failures/")
            for line in json_lines(data)
        ]
        billed = {charge.client_request_id for charge in self.charges.values()}
        # A worker that is killed between a request's intent and its POST leaves it in doubt, although it never arrived.
        self.never_arrived = [
            line for line in failures if line["error"] == "LostAnswerError" and line["client_request_id"] not in billed
        ]
        self.failures = [line for line in failures if line not in self.never_arrived]

    def total(self, name: str) -> float:
        """Sum up one number of the summaries."""
        return sum(summary[name] for summary in self.summaries.values())

    def assert_complete(self, prompts: int) -> None:
        """Assert that each prompt was billed once, and each charge is a complete image or a loss reported by id."""
        assert set(Counter(charge.prompt for charge in self.charges.values()).values()) == {1}
        assert len(self.charges) == prompts
        assert self.total("usd_spent") == pytest.approx(float(sum(charge.usd for charge in self.charges.values())))
        accounted_for = Counter(line["inference_id"] for line in [*self.lines, *self.failures])
        assert accounted_for == Counter(list(self.charges))
        self._assert_losses_reported()
        self._assert_images_intact()

    def _assert_losses_reported(self) -> None:
        assert {failure["error"] for failure in self.failures} <= {"ChargedButLostError"}
        lost = sum(self.charges[failure["inference_id"]].usd for failure in self.failures)
        assert self.total("usd_lost") == pytest.approx(float(lost))
        assert self.total("failed") == len(self.failures)
        assert self.total("made") == len(self.lines)

    def _assert_images_intact(self) -> None:
        files = {key for key in self.objects if key.endswith(".png")}
        assert files == {line["file_name"] for line in self.lines}
        for line in self.lines:
            data = self.objects[line["file_name"]]
            assert (len(data), hashlib.sha256(data).hexdigest()) == (line["bytes"], line["sha256"])
            with Image.open(BytesIO(data)) as image:
                image.load()
                assert image.size == (line["width"], line["height"])
            charge = self.charges[line["inference_id"]]
            assert (line["prompt"], line["usd"]) == (charge.prompt, float(charge.usd))
            assert (line["task_id"], line["map_index"]) == instance_of(line["prompt"])


# --- a night's work ---------------------------------------------------------------------------------------------------


class Watch:
    """Records, while a run goes on, the journals in PostgreSQL and the worker of each task instance."""

    def __init__(self, cluster: Cluster, run: Run) -> None:
        self._cluster = cluster
        self._run = run
        self._looked_at = 0.0
        self.requests: dict[tuple[str, int], set[str]] = defaultdict(set)
        self.workers_at_once: list[dict[tuple[str, int], str]] = []

    def look(self) -> None:
        """Read all rows, at most every two seconds."""
        if time.monotonic() < self._looked_at + 2:
            return
        workers = self._run.running()
        with_rows = set()
        for instance, text in self.rows():
            with_rows.add(instance)
            lines = json_lines(json.loads(text).encode())  # the first line may not be a record
            self.requests[instance] |= {line["client_request_id"] for line in lines if line.get("t") == "intent"}
        self.workers_at_once.append({each: worker for each, worker in workers.items() if each in with_rows})
        self._looked_at = time.monotonic()

    def rows(self) -> list[tuple[tuple[str, int], str]]:
        rows = self._cluster.postgres.rows(
            "SELECT task_id, map_index, value FROM task_state_store WHERE dag_id = %s AND run_id = %s",
            self._run.dag_id,
            self._run.run_id,
        )
        return [((task_id, map_index), value) for task_id, map_index, value in rows]


class Night:
    """The run of 2,000 prompts, and what was recorded of it."""

    def __init__(self, cluster: Cluster) -> None:
        with cluster.phase("2,000 prompts, 57 task instances", "night"):
            self.run = cluster.trigger("night")
            self.watch = Watch(cluster, self.run)
            self.run.wait(self.watch.look)
        self.remains = Remains(cluster, self.run)


@pytest.fixture(scope="module")
def night(cluster: Cluster) -> Night:
    return Night(cluster)


def test_two_thousand_prompts_become_two_thousand_images_each_paid_for_once(night: Night) -> None:
    night.remains.assert_complete(2000)
    assert night.remains.failures == []
    assert night.remains.total("adopted") == 0
    assert len(night.remains.summaries) == 57
    assert len(night.run.instances()) == 57
    assert {each["try_number"] for each in night.run.instances()} == {1}


def test_both_workers_did_their_share(night: Night) -> None:
    assert {each["hostname"] for each in night.run.instances()} == set(WORKERS)


def test_each_instance_on_two_workers_has_its_own_journal(cluster: Cluster, night: Night) -> None:
    at_once = [Counter(workers.values()) for workers in night.watch.workers_at_once]
    assert any(all(counts[worker] >= 2 for worker in WORKERS) for counts in at_once)

    prompts = {charge.client_request_id: charge.prompt for charge in night.remains.charges.values()}
    seen = {(instance, name) for instance, names in night.watch.requests.items() for name in names}
    assert len(seen) > 1000
    assert {instance for instance, _ in seen} > {("catalogue", -1), *(("pages", page) for page in range(16))}
    assert [(instance, prompts[name]) for instance, name in seen if instance_of(prompts[name]) != instance] == []


def test_no_journal_is_left_after_success(night: Night) -> None:
    wait_until(lambda: not night.watch.rows(), "the journals to be forgotten")  # shortly after the success


# --- a limit across tasks and workers ---------------------------------------------------------------------------------


def test_a_pool_runs_exactly_as_many_task_instances_as_it_has_slots(cluster: Cluster) -> None:
    slots, concurrency = 3, 2
    cluster.sandbox.configure(max_concurrent=slots * concurrency)
    with cluster.phase("a pool of 3 slots, 2 requests each", "pool"):
        run = cluster.trigger("pool")
        run.wait()
    cluster.sandbox.configure(max_concurrent=None)

    times = []
    for each in run.instances():
        times += [(datetime.fromisoformat(each["start_date"]), 1), (datetime.fromisoformat(each["end_date"]), -1)]
    at_once = [sum(step for _, step in sorted(times)[: number + 1]) for number in range(len(times))]
    assert max(at_once) == slots
    assert {each["hostname"] for each in run.instances()} == set(WORKERS)
    posts = cluster.sandbox.seen("/v1/images/generations")
    assert [post for post in posts if post.status == 429] == []
    Remains(cluster, run).assert_complete(90)


# --- text that PostgreSQL rejects -------------------------------------------------------------------------------------


def test_characters_that_postgresql_rejects_in_responses_cost_nothing(cluster: Cluster) -> None:
    for damage in ("null", "surrogate", "control", "encoding"):
        cluster.sandbox.add_fault(Fault("damaged_text", prompt="damaged ", damage=damage))
    with cluster.phase("responses with damaged text", "damaged"):
        run = cluster.trigger("damaged")
        run.wait()

    remains = Remains(cluster, run)
    remains.assert_complete(4)
    assert remains.failures == []
    assert {each["try_number"] for each in run.instances()} == {1}
    written = {line["enhanced_prompt"] for line in remains.lines}
    assert written == {"before \ufffd after", "before \x01 after"}
    ((extra,),) = cluster.postgres.rows(
        "SELECT extra::text FROM asset_event WHERE source_dag_id = %s AND source_run_id = %s", run.dag_id, run.run_id
    )
    assert json.loads(extra)["made"] == 4


# --- faults -----------------------------------------------------------------------------------------------------------


def go_through(
    cluster: Cluster,
    dag_id: str,
    phase: str,
    fault: Callable[[Run], None],
) -> Remains:
    """Run a DAG, let something fail halfway, and assert that everything is complete in the end."""
    wait_until(cluster.is_up_again, "Airflow")
    with cluster.phase(phase, dag_id):
        run = cluster.trigger(dag_id)

        def is_in_the_middle() -> bool:
            billed = Counter(instance_of(charge.prompt) for charge in cluster.billed(dag_id))
            return len(billed) == 4 and min(billed.values()) >= 10

        wait_until(is_in_the_middle, "the middle")
        assert len(run.running()) == 4
        fault(run)
        assert len(cluster.billed(dag_id)) < 240
        run.wait(cluster.revive)
    remains = Remains(cluster, run)
    remains.assert_complete(240)
    return remains


def test_an_api_server_restarted_mid_run_costs_nothing(cluster: Cluster) -> None:
    def fault(run: Run) -> None:
        cluster.processes.stop("api-server")
        cluster.start_part("api-server")

    remains = go_through(cluster, "api_fails", "the api-server restarted", fault)
    assert remains.failures == remains.never_arrived == []


def test_a_database_restarted_mid_run_costs_nothing(cluster: Cluster) -> None:
    assert cluster.revived == []
    remains = go_through(cluster, "database_fails", "PostgreSQL restarted", lambda run: cluster.postgres.restart())
    assert remains.failures == remains.never_arrived == []


def test_a_store_unavailable_for_ten_seconds_costs_nothing(cluster: Cluster) -> None:
    def fault(run: Run) -> None:
        cluster.store.die()
        time.sleep(10)
        cluster.store.come_back()

    remains = go_through(cluster, "store_fails", "the S3 server away for 10 s", fault)
    assert remains.failures == remains.never_arrived == []


def test_a_killed_worker_costs_no_more_than_what_it_had_in_flight(cluster: Cluster) -> None:
    """Requests billed but not yet recorded when the worker died are reported by id, and not sent again."""
    for index in range(4):  # so that one is billed and without a response on whichever worker is killed
        cluster.sandbox.add_fault(Fault("hang", prompt=f"worker_fails paint {index} 007", billed=True))
    cluster.processes.stop(
        "scheduler"
    )  # replaced by one that notices sooner than after Airflow's default of five minutes
    cluster.start_part("scheduler", AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT="30")
    killed: set[int] = set()

    def fault(run: Run) -> None:
        workers = run.running()
        busy, _ = Counter(workers.values()).most_common(1)[0]
        killed.update(map_index for (_, map_index), worker in workers.items() if worker == busy)
        cluster.processes.kill(busy)
        cluster.start_part(busy)

    remains = go_through(cluster, "worker_fails", "a worker killed", fault)
    lost = Counter(instance_of(failure["prompt"])[1] for failure in remains.failures)
    assert set(lost) == {0, 1, 2, 3}
    assert {instance_of(line["prompt"])[1] for line in remains.never_arrived} <= killed
    assert len(remains.never_arrived) <= 4 * len(killed)
    assert all(count <= (4 if map_index in killed else 1) for map_index, count in lost.items())
    assert {map_index for (_, map_index), each in remains.summaries.items() if each["adopted"]} == killed


def test_neither_the_api_server_nor_a_worker_has_ended_by_itself(cluster: Cluster) -> None:
    """Airflow's own services may not survive a restart of PostgreSQL, and may end minutes later."""
    assert set(cluster.revived).isdisjoint({"api-server", *WORKERS})


# --- leftovers --------------------------------------------------------------------------------------------------------


def messages(monitored: bytes) -> Iterator[bytes]:
    """Decode the messages in the queue, which Celery encodes as base64."""
    for body in re.findall(rb'"body\\*": *\\*"([A-Za-z0-9+/=]+)', monitored):
        yield base64.b64decode(body)


def test_neither_the_key_nor_a_signed_url_is_written_anywhere(cluster: Cluster) -> None:
    """Logs and output of every process, the database, the queue, and the bucket."""
    key = cluster.sandbox.api_key.encode()
    signed = re.compile(rb"(Signature|OSSAccessKeyId)=")
    assert all("Signature" in request.query for request in cluster.sandbox.seen("/generations/"))
    shown = {"sandbox.out"}  # it shows its own key
    written = {str(path): path.read_bytes() for path in HOME.rglob("*") if path.is_file() and path.name not in shown}
    logs = [name for name in written if name.endswith(".log") and "dag_id=" in name]
    assert len(logs) > 57
    queue = [message for message in messages(written[str(HOME / "redis-monitor.out")]) if b"ExecuteTask" in message]
    assert len(queue) > 57
    assert any(b"Image 1 of" in written[name] for name in logs)  # proves that the search works
    written |= {"the database": cluster.postgres.dump(), **{f"message {n}": each for n, each in enumerate(queue)}}
    assert [name for name, data in written.items() if key in data] == []
    assert [name for name, data in written.items() if signed.search(data)] == []
