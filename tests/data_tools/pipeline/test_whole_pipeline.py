"""A whole pipeline over English, Chinese and code: every stage, every count, every executor."""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_tools.corpus.verify import verify
from data_tools.engine.document import read_documents
from data_tools.engine.executor import Executor, InProcessExecutor
from data_tools.engine.task import Manifest, Task, TaskResult, write_manifest
from data_tools.errors import DataError
from data_tools.pipeline.pipeline_file import load_pipeline
from data_tools.pipeline.run import RunSummary, run_pipeline

ENGLISH = (
    "The river ran slowly under the old stone bridge that morning.",
    "People from the village said that it would rain before the evening.",
    "She had walked with her brother to the market and back again.",
    "There was nothing of value in the house except the books and the clock.",
    "We have to be careful with the answers that we give to the children.",
    "Most of the ships in the harbour were waiting for the wind to turn.",
    "His letters describe the mountains, the weather and the food in great detail.",
    "Nobody could remember when the school had been painted for the last time.",
    "The teacher explained to the class how a compass finds the north.",
    "In the winter the lake freezes and the children skate on it.",
)
CHINESE = (
    "昨天下午我们在公园里散步，天气非常好，很多人都带着孩子出来玩。",
    "这个城市的历史很长，老街上的房子大多是一百年以前建造的。",
    "他说他不喜欢在夏天旅行，因为火车站里的人实在太多了。",
    "图书馆的管理员告诉我，这本书已经被别人借走了，要等两个星期。",
    "为了准备明天的考试，学生们一直学习到晚上十一点才回家。",
    "妈妈做的饭菜总是很香，邻居们也常常来我们家一起吃晚饭。",
    "医生建议他每天早上跑步半个小时，并且少吃一些甜的东西。",
    "我们公司的新产品将在下个月上市，大家都对它充满了信心。",
)


QUESTION = "Which of the three travellers arrived at the inn before the storm closed the only road to the coast?"
LEAKED = "\n".join([*ENGLISH[:4], QUESTION.upper(), *ENGLISH[4:]])


def english(number: int) -> str:
    lines = random.Random(number).sample(ENGLISH, 8)
    return f"This is story number {number} of the collection, and it has {number + 7} parts.\n" + "\n".join(lines)


def chinese(number: int) -> str:
    lines = random.Random(number).sample(CHINESE, 7)
    return f"这是第{number}个故事，作者在书里一共写了{number + 3}个人物。\n" + "\n".join(lines)


def code(number: int) -> str:
    names = random.Random(number).sample(["load", "store", "merge", "split", "count", "index"], 4)
    return f"import os\n\nLIMIT = {number}\n\n" + "\n".join(
        f"def {name}_{number}(path):\n    total = {number}\n    for entry in os.listdir(path):\n        total += 1\n"
        f"    return total\n"
        for name in names
    )


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[[str], Path]:
    def write(output: str) -> Path:
        documents = {
            "web": [
                *(english(n) for n in range(30)),
                english(3).replace(" ", "  "),
                english(4),
                "This text is far too short to be kept.",
            ]
            + [(ENGLISH[0] + "\n") * 20, english(12) + "\nYes.", LEAKED]
            + ["Это короткий рассказ о том, как мы гуляли в парке и долго говорили о книгах."],
            "books": [*(chinese(n) for n in range(25)), chinese(7).replace("，", ","), chinese(8)],
            "source": [*(code(n) for n in range(20)), code(2)],
        }
        for name, texts in documents.items():
            lines = [orjson.dumps({"text": text}) for text in texts]
            lines.insert(5, b'{"text": "\xff"}')
            (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(lines))
        (tmp_path / "exam.jsonl.txt").write_bytes(orjson.dumps({"question": QUESTION}))
        inputs = "".join(f"      - {{path: {tmp_path}/{name}.jsonl, source: {name}}}\n" for name in documents)
        path = tmp_path / f"{output}.yaml"
        path.write_text(
            f"output: {tmp_path}/{output}\nstages:\n  - kind: read\n    split_bytes: 6000\n    inputs:\n{inputs}"
            "  - kind: normalise\n  - {kind: language, keep: [en, zh, code], min_score: 0.5}\n  - kind: filter\n"
            "  - kind: exact_dedup\n  - kind: fuzzy_dedup\n    rows: 30\n    bands: 4\n  - kind: decontaminate\n"
            f"    benchmarks: [{{name: exam, path: {tmp_path}/exam.jsonl.txt, text_key: question}}]\n"
            "  - {kind: sample, fractions: {source: 0.5}}\n"
            "  - {kind: tokenize, tokens_in_memory: 2000}\n"
        )
        return path

    return write


def check(summary: RunSummary, output: Path) -> None:
    stages = {stage["kind"]: stage for stage in summary.stages}
    assert stages["read"]["rejected"] == {"invalid_utf8": 3}
    assert stages["read"]["records_in"] == 88
    previous = stages["read"]["records_out"]
    for stage in summary.stages[1:]:
        assert stage["records_in"] == previous
        previous = stage["records_out"]
        assert stage["records_in"] == stage["records_out"] + sum(stage["rejected"].values())
    assert stages["language"]["rejected"]["other_language"] >= 1
    assert set(stages["language"]["statistics"]["by_language"]) == {"en", "zh", "code"}
    assert stages["language"]["statistics"]["by_language"]["code"][0] == 21
    assert sum(stages["filter"]["rejected"].values()) == 2
    assert stages["exact_dedup"]["rejected"] == {"exact_duplicate": 5}
    assert stages["fuzzy_dedup"]["rejected"]["near_duplicate"] == 1
    assert stages["decontaminate"]["rejected"] == {"contaminated": 1}
    assert 4 <= stages["sample"]["rejected"]["not_sampled"] <= 16
    documents = {name: verify(output / "corpora" / name).num_documents for name in ("web", "books", "source")}
    assert documents["web"] == 30
    assert documents["books"] == 25
    assert documents["source"] == 20 - stages["sample"]["rejected"]["not_sampled"]
    dropped = [orjson.loads(line) for line in _lines(output / "stages/04-filter", "dropped")]
    assert sorted(entry["document"]["text"][:8] for entry in dropped) == ["The rive", "This tex"]
    assert all(entry["detail"] for entry in dropped)


def _lines(folder: Path, kind: str) -> list[bytes]:
    import zstandard

    return [
        line
        for path in sorted(folder.glob(f"*.{kind}.jsonl.zst"))
        for line in zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().splitlines()
    ]


def run(path: Path, executor: Executor) -> RunSummary:
    try:
        return run_pipeline(load_pipeline(path), executor)
    finally:
        executor.close()


def busy_workers() -> list[int]:
    """Processes of the Ray cluster below this process that are at one of our tasks."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            names[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])

    def is_ours(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    return [one for one, name in names.items() if name.startswith(b"ray::_perform") and is_ours(one)]


def kill_workers(killed: list[int], count: int, is_over: threading.Event) -> None:
    """Kills ``count`` workers at work, one after the other."""
    while len(killed) < count and not is_over.wait(0.02):
        for process in busy_workers()[:1]:
            if process not in killed:
                os.kill(process, signal.SIGKILL)
                killed.append(process)


@pytest.fixture
def ray_nodes() -> Iterator[Any]:
    """A cluster of two nodes, with a core and the smallest object store that Ray allows each."""
    from ray.cluster_utils import Cluster

    smallest = {"num_cpus": 1, "object_store_memory": 75 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=smallest)
    cluster.add_node(num_cpus=1, object_store_memory=75 << 20)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_in_this_process_and_on_ray_that_loses_a_worker_and_a_node(
    tmp_path: Path, write_corpus: Callable[[str], Path], ray_nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools.engine import ray_executor

    check(run(write_corpus("here"), InProcessExecutor()), tmp_path / "here")
    looked_for: list[str] = []
    require_seen = ray_executor.require_seen

    def noted(manifest: Manifest, host: str) -> None:
        looked_for.append(manifest.name)
        require_seen(manifest, host)

    monkeypatch.setattr(ray_executor, "require_seen", noted)
    killed: list[int] = []
    is_over = threading.Event()

    def kill() -> None:
        kill_workers(killed, 1, is_over)
        while not (tmp_path / "ray/stages/04-filter/stage.json").exists() and not is_over.wait(0.02):
            pass
        (node,) = ray_nodes.worker_nodes
        ray_nodes.remove_node(node, allow_graceful=False)

    executor = ray_executor.RayExecutor(ray_nodes.address)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        check(run(write_corpus("ray"), executor), tmp_path / "ray")
    finally:
        is_over.set()
        killer.join()
    assert len(killed) == 1
    assert not ray_nodes.worker_nodes
    # The first result of each node.
    assert len(looked_for) == 2
    session = Path(ray_nodes.head_node.get_session_dir_path())
    assert list(session.glob("sockets"))
    assert not [path for path in session.rglob("ray_spilled_objects*/**/*") if path.is_file()]
    for path in (tmp_path / "here/corpora").glob("*.bin"):
        assert path.read_bytes() == (tmp_path / "ray/corpora" / path.name).read_bytes()


def test_what_another_node_wrote_must_be_seen_here(tmp_path: Path) -> None:
    from data_tools.engine.ray_executor import require_seen

    task = Task(operation="read", folder=str(tmp_path), name="part-000000", options={}, inputs=())
    (tmp_path / "part-000000.jsonl.zst").write_bytes(b"")
    manifest = write_manifest(task, TaskResult(outputs=["part-000000.jsonl.zst"]))
    require_seen(manifest, "elsewhere", 0)
    (tmp_path / "part-000000.jsonl.zst").rename(tmp_path / "late")
    with pytest.raises(DataError, match=r"part-000000.jsonl.zst: was written on elsewhere, but is not seen on "):
        require_seen(manifest, "elsewhere", 0)
    threading.Timer(0.1, (tmp_path / "late").rename, [tmp_path / "part-000000.jsonl.zst"]).start()
    require_seen(manifest, "elsewhere", 30)


def test_text_survives_the_stages_as_it_is(tmp_path: Path, write_corpus: Callable[[str], Path]) -> None:
    run(write_corpus("out"), InProcessExecutor())
    shards = (tmp_path / "out/stages/08-sample").glob("part-??????.jsonl.zst")
    texts = {document.text for shard in shards for document in read_documents(shard)}
    assert {english(n) for n in range(30) if n not in (3, 12)} <= texts
    assert {chinese(n) for n in range(25) if n != 7} <= texts
