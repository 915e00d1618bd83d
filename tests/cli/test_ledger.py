"""`python -m lorachains.ledger`: what it makes of a run's chain scores as that chain did."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorachains.evaluate import main as evaluate_main
from lorachains.ledger import main
from lorachains.models import tiny
from tests.cli.conftest import Call, Train

Command = Callable[..., tuple[Any, dict[str, Any], str]]
COLA = ["method=cola", "knots.links=2", "optim.lr=0.3", "method.select=last", "hydra.run.dir=run"]
"""A knot after the first of two optimizer steps."""


@pytest.fixture
def command(call: Call) -> Command:
    def scored(of: Callable[[], None], *arguments: str) -> tuple[Any, dict[str, Any], str]:
        done = call(of, *arguments)
        return done.code, json.loads(done.out) if done.code == 0 else {}, done.err

    return scored


def test_show_rewind_and_compress(train: Train, command: Command) -> None:
    assert train(*COLA).code == 0
    loss = json.loads(Path("run/metrics.json").read_text())["test/loss"]
    code, shown, err = command(main, "run=run")
    assert code == 0, err
    assert [(link["link"], link["rank"], link["knot"]) for link in shown["links"]] == [(1, 8, 1), (2, 8, None)]
    assert all(link["norm"] > 0 for link in shown["links"])
    assert (shown["rank"], shown["base"]) == (16, "tiny")

    _, rewound, _ = command(main, "action=rewind", "run=run", "links=1", "output=one")
    assert rewound["links"] == shown["links"][:1]
    assert command(main, "adapter=one")[1]["norm"] == pytest.approx(shown["links"][0]["norm"])
    of_one = command(evaluate_main, "run=run", "adapter=one")[1]["test/loss"]
    assert of_one != pytest.approx(loss, rel=1e-6)

    _, exact, _ = command(main, "action=compress", "run=run", "rank=16", "output=exact")
    assert 0 <= exact["error"] < 1e-6
    assert max(exact["layers"].values()) < 1e-6
    assert command(evaluate_main, "run=run", "adapter=exact")[1]["test/loss"] == pytest.approx(loss, rel=1e-5)
    _, smaller, _ = command(main, "action=compress", "adapter=run/adapter", "rank=2", "output=smaller")
    assert 0 < smaller["error"] < 1
    assert len(smaller["layers"]) == shown["layers"]


def test_merge_in_memory_and_file_by_file(train: Train, command: Command) -> None:
    assert train(*COLA).code == 0
    loss = json.loads(Path("run/metrics.json").read_text())["test/loss"]
    data = ["data.train_size=8", "data.val_size=2", "data.test_size=2", "data.max_new_tokens=2"]
    code, merged, err = command(main, "action=merge", "run=run", "output=full")
    assert code == 0, err
    assert "the whole model is taken into memory" in err
    assert merged == {"lost": 0.0, "dtype": "float32", "output": "full"}
    whole = ["model=hf", "model.name=./full", "model.dtype=float32"]
    assert command(evaluate_main, *whole, *data)[1]["test/loss"] == pytest.approx(loss, rel=1e-5)

    base = tiny()
    base.model.save_pretrained("base", max_shard_size="100KB")
    base.tokenizer.save_pretrained("base")
    from_files = ["action=merge", "adapter=run/adapter", "model=hf", "model.name=./base"]
    code, merged, err = command(main, *from_files, "model.dtype=float32", "output=sharded")
    assert code == 0, err
    assert "taken into memory" not in err
    assert len(list(Path("sharded").glob("*.safetensors"))) > 1
    whole = ["model=hf", "model.name=./sharded", "model.dtype=float32"]
    assert command(evaluate_main, *whole, *data)[1]["test/loss"] == pytest.approx(loss, rel=1e-5)
    _, rounded, _ = command(main, *from_files, "model.dtype=bfloat16", "output=rounded")
    assert (rounded["dtype"], 0 < rounded["lost"] < 1) == ("bfloat16", True)
    for output, given in (("half", from_files), ("full_half", ["action=merge", "run=run"])):
        code, halved, err = command(main, *given, "model.dtype=float16", f"output={output}")
        assert code == 0, err
        assert (halved["dtype"], 0 < halved["lost"] < 1) == ("float16", True)
        assert {tensor.dtype for file in Path(output).glob("*.safetensors") for tensor in load_file(file).values()} == {
            torch.float16
        }


WRONG: list[tuple[list[str], str]] = [
    ([], "no chain is given: set run=DIR, of method=lora or cola, or adapter=DIR"),
    (["run=bare"], "run=bare has no adapter: its method trains none"),
    (["run=run", "action=rewind", "links=1", "output=run/metrics.json/new"], "run/metrics.json/new: Not a directory"),
    (["run=nowhere"], "nowhere holds no finished run"),
    (["adapter=nowhere"], "nowhere holds no adapter"),
    (["run=several"], "run=several has several adapters: give with it adapter=several/adapters/NAME, of leg_counting"),
    (["run=shown"], "run=shown has no adapter: its method trains none"),
    (["run=run", "action=burn"], "action is 'burn': choose show, rewind, compress, merge"),
    (["run=run", "action=rewind", "links=3", "output=new"], "links is 3, but the chain has 2: choose 0…2"),
    (["run=run", "action=rewind", "output=new"], "links is None, but the chain has 2: choose 0…2"),
    (["run=run", "action=rewind", "links=1"], "action=rewind writes a folder: set output=DIR"),
    (["run=run", "action=compress", "rank=4", "output=run"], "output is run, which holds something already"),
    (["run=run", "action=compress", "output=new"], "rank is None: give the new adapter's rank, at least 1"),
    (["run=run", "action=merge", "model.seed=5", "output=new"], "was trained on tiny"),
    (["run=run", "action=merge", "model=hf", "model.name=nothing/here", "output=new"], "the hub can't be reached"),
]


def test_wrong_arguments(train: Train, command: Command) -> None:
    assert train(*COLA).code == 0
    assert train("method=zero_shot", "hydra.run.dir=bare").code == 0
    assert train("method=icl", "hydra.run.dir=shown").code == 0
    two = ["data.tasks=[leg_counting,syllogism]", "hydra.run.dir=several"]
    assert train("method=single_lora", *two).code == 0
    assert command(main, "run=several", "adapter=several/adapters/syllogism")[0] == 0
    for arguments, says in WRONG:
        code, _, err = command(main, *arguments)
        assert code == 1, arguments
        assert says in err
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1, err
        assert not Path("new").exists()
