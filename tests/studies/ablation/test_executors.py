"""The same parts on a pool of processes and on a Dask cluster, whose workers may be killed."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sinklens import load, tokenize
from sinklens.errors import InputError, MissingExtraError
from sinklens.interventions import AblateHeads, Intervention
from sinklens.passes.head_sets import Depth
from sinklens.studies import sweep
from sinklens.studies.ablation import process_pool
from sinklens.studies.ablation.dask_cluster import DaskCluster
from sinklens.studies.ablation.executor_name import check_executor
from sinklens.studies.ablation.executors import Serial, loading_here, parse_executor
from sinklens.studies.ablation.layout import Layout, cut
from sinklens.studies.ablation.process_pool import ProcessPool, WorkerLostError
from sinklens.studies.ablation.recipe import ModelRecipe, fingerprint
from sinklens.studies.ablation.tasks import Task, run_task
from sinklens.studies.ablation.worker import run_on_worker
from tests import families
from tests.heard import HeardParts

IDS = families.random_ids(10, 24).tolist()
SETS = [((layer, head),) for layer in range(2) for head in range(4)]


@pytest.fixture(scope="module")
def model(tiny_directory: Path) -> TransformerBridge:
    return load(tiny_directory)


@pytest.fixture(scope="module")
def serial(model: TransformerBridge) -> pd.DataFrame:
    return sweep(model, "zero", tokens=IDS, batch_size=1, ranking="own", controls=1).tables["effects"]


def tasks(model: TransformerBridge, intervention: Intervention) -> list[Task]:
    batch = tokenize(model, IDS[:2])
    parts = cut("zero", SETS, batch, Layout(1, 4, 1, 0), depth=Depth([1] * 2))
    return [Task(part, intervention, batch.rows(part.sequences), None, 4) for part in parts]


def same(table: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(table, other, rtol=0, atol=1e-6)


def test_names_of_executors(model: TransformerBridge) -> None:
    assert isinstance(parse_executor("serial", model), Serial)
    pool = parse_executor("processes:3", model)
    assert isinstance(pool, ProcessPool) and (pool.workers, pool.name) == (3, "processes:3")
    assert parse_executor("processes", model).workers >= 1
    assert isinstance(parse_executor("tcp://localhost:8786", model), DaskCluster)
    for wrong in (
        "process:2",
        "processes:",
        "processes:0",
        "processes:x",
        "localhost:8786",
        "http://x:1",
        "tcp://",
        "",
    ):
        with pytest.raises(InputError, match="executor must be serial"):
            check_executor(wrong)
    assert loading_here("serial", {"device": "cuda:{i}"})["device"] == "cuda:0"
    assert loading_here("processes:2", {"device": "cuda:{i}", "dtype": "bfloat16"}) == {
        "device": "cpu",
        "dtype": "bfloat16",
    }


def test_a_recipe_gives_the_same_weights_or_none(
    model: TransformerBridge, tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ModelRecipe.of(model, {"device": "cpu"})
    assert fingerprint(recipe.load()) == recipe.fingerprint
    task = tasks(model, AblateHeads("all"))[0]
    pd.testing.assert_frame_equal(run_on_worker(recipe, task), run_task(model, task), check_exact=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = replace(recipe, device="cuda:{i}")
    assert [gpus.for_worker(number).device for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    with pytest.raises(InputError, match="other weights"):
        replace(recipe, fingerprint="0" * 64).load()
    with pytest.raises(InputError, match=r"A worker has torch .* instead of 1\.0"):
        replace(recipe, versions=(("torch", "1.0"),)).load()
    mine = TransformerBridge.boot_transformers(str(tiny_directory), device="cpu", dtype=torch.float32)
    with pytest.raises(InputError, match="not made by sinklens"):
        sweep(mine, tokens=IDS, executor="processes:2")


def test_one_changed_weight_changes_the_fingerprint(tiny_directory: Path) -> None:
    model = load(tiny_directory)
    before = fingerprint(model)
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight[100, 3] += 1e-6
    assert fingerprint(model) != before


@pytest.mark.skipif(sys.platform == "win32", reason="uses SIGKILL")
def test_processes_give_the_same_table_though_one_is_killed(
    model: TransformerBridge, serial: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pools: list[ProcessPool] = []
    made = ProcessPool.__init__
    monkeypatch.setattr(ProcessPool, "__init__", lambda self, n: (pools.append(self), made(self, n))[1])
    started: list[int] = []
    start = process_pool._Worker.__init__
    monkeypatch.setattr(
        process_pool._Worker,
        "__init__",
        lambda self, recipe: (start(self, recipe), started.append(self.process.pid))[0],
    )

    def kill_one(heard: HeardParts) -> None:
        if len(heard.saved) == 2:
            os.kill(started[0], signal.SIGKILL)

    heard = HeardParts(tmp_path / "sweep", kill_one)
    result = sweep(
        model,
        "zero",
        tokens=IDS,
        batch_size=1,
        ranking="own",
        controls=1,
        executor="processes:2",
        out=tmp_path / "sweep",
        progress=heard,
    )
    assert len(started) == 3, "the killed one was replaced, and both stages used the same processes"
    assert len(heard.saved) == len(set(heard.saved)) == 20
    same(result.tables["effects"], serial)
    assert result.meta["settings"]["executor"] == "processes:2"
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@dataclass(frozen=True)
class Deadly(AblateHeads):
    """Ends the process that unpickles it, as a lack of memory would."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


def test_a_part_that_always_kills_its_worker_ends_in_one_sentence(
    model: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "RETRIES", 0)  # one start of torch; a retry is in the test above
    pool = ProcessPool(1)
    with pytest.raises(WorkerLostError, match=r"Part 0 lost its worker process 1 times \(the last by exit status 3\)"):
        list(pool.run(tasks(model, Deadly("all")), ModelRecipe.of(model, {"device": "cpu"}), lambda *_: None))
    pool.close()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Dask scheduler without workers."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=0,
        processes=False,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
        host="127.0.0.1",
        protocol="tcp",
    ) as cluster:
        yield cluster


def start_worker(cluster: Any, directory: Path) -> subprocess.Popen[bytes]:
    options = ("--no-nanny", "--nthreads", "2", "--no-dashboard", "--local-directory", str(directory))
    command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, *options]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdout=silent, stderr=silent)


def test_a_dask_cluster_gives_the_same_table_though_a_worker_is_killed(
    cluster: Any, model: TransformerBridge, serial: pd.DataFrame, tmp_path: Path
) -> None:
    workers = [start_worker(cluster, tmp_path / str(number)) for number in range(2)]

    def kill_one(heard: HeardParts) -> None:
        if len(heard.saved) == 2:
            workers[0].kill()
            workers[0].wait()

    heard = HeardParts(tmp_path / "sweep", kill_one)
    try:
        while len(cluster.scheduler.workers) < 2:
            assert all(worker.poll() is None for worker in workers)
            time.sleep(0.05)
        result = sweep(
            model,
            "zero",
            tokens=IDS,
            batch_size=1,
            ranking="own",
            controls=1,
            executor=cluster.scheduler_address,
            loading={"device": "cpu"},
            out=tmp_path / "sweep",
            progress=heard,
        )
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert workers[0].returncode == -signal.SIGKILL and len(heard.saved) == len(set(heard.saved)) == 20
    same(result.tables["effects"], serial)


def test_a_cluster_that_is_not_there(model: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("sinklens.studies.ablation.dask_cluster.CONNECT_SECONDS", 0.5)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        sweep(model, tokens=IDS, executor="tcp://127.0.0.1:9")
    assert time.monotonic() - began < 60
    with pytest.raises(InputError, match="No Dask scheduler answers at tcp://nonsense"):
        sweep(model, tokens=IDS, executor="tcp://nonsense")
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        sweep(model, tokens=IDS, executor="tcp://127.0.0.1:9", loading={"device": "cuda:{i}"})


def test_without_dask_the_extra_is_named(model: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sinklens\[cluster\]'"):
        sweep(model, tokens=IDS, executor="tcp://127.0.0.1:9")
