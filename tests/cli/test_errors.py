"""Each wrong input gives one line on stderr that says what to do, and an exit status other than 0."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Train

RUN = "hydra.run.dir=run"


def error_line(err: str) -> str:
    """The only line about the error; no traceback around it, and none of Hydra's advice."""
    assert "Traceback" not in err
    assert "HYDRA_FULL_ERROR" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.task=no_such"], "data.task is 'no_such': known reasoning_gym tasks are"),
        (["data=superglue", "data.task=no_such"], "data.task is 'no_such': known tasks are rte"),
        (["data=superglue", "data.root=nowhere"], "data.root=nowhere must hold the official superglue/RTE/train.jsonl"),
        (["method=cola", "knots=at_steps", "knots.steps=[2]"], "knot after optimizer step 2, but the run has 2"),
        (["method=cola", "knots=at_epochs", "knots.epochs=[9]"], "knot after optimizer step 18, but the run has 2"),
        (["method=cola", "knots.links=0"], "knots.links is 0"),
        (["method=cola", "knots.mode=both"], "knots.mode is 'both': choose ledger or merge"),
        (["method=cola", "knots.ranks=[8,0]"], "knots.ranks is [8, 0]"),
        (["method=cola", "knots=every", "knots.n_steps=0"], "knots.n_steps is 0"),
        (["adapter.r=0"], "adapter.r is 0"),
        (["adapter.r=-3"], "adapter.r is -3"),
        (["adapter.lora_dropout=1.5"], "adapter.lora_dropout is 1.5"),
        (
            ["adapter.target_modules=[no_such]"],
            "adapter.target_modules=['no_such']: 'no_such' matches no layer of LlamaForCausalLM",
        ),
        (["adapter.init_lora_weights=orthogonal"], "adapter.init_lora_weights is 'orthogonal'"),
        (["model=hf", "model.name=org/nothing"], "the hub can't be reached and its local cache lacks it"),
        (["model=hf", "model.name=./nothing"], "no such folder or file"),
        (["model.dtype=int7"], "model.dtype is 'int7'"),
        (["optim.lr=0.0"], "optim.lr is 0.0"),
        (["optim.schedule=step"], "optim.schedule is 'step'"),
        (["method.select=f1"], "method.select is 'f1'"),
        (["data.batch_size=0"], "data.batch_size is 0"),
        (["data.batch_size=many"], "data.batch_size is 'many'"),
        (["data.train_size=-1"], "data.train_size is -1"),
        (["trainer.max_epochs=-1"], "both unlimited"),
        (["method=cola", "knots=at_steps", "knots.steps=1"], "knots.steps is 1: give a list"),
        (["method=cola", "knots=at_steps", "knots.steps=[0.5]"], "knots.steps is [0.5]"),
        (["method=cola", "knots=at_epochs", "knots.epochs=1"], "knots.epochs is 1"),
        (["method=cola", "knots.links=abc"], "knots.links is 'abc'"),
        (["method=cola", "knots.ranks=4"], "knots.ranks is 4"),
        (["method=cola", "knots.requantize=true"], "knots.requantize is True with knots.mode=ledger"),
        (["start_from=nowhere"], "start_from is nowhere: give the folder of a run or of an adapter"),
        (["method=full", "start_from=run"], "start_from is run, but lorachains.methods.Full trains no chain"),
        (["start_from=3"], "start_from is 3: give a folder's path, as ./NAME"),
        (["start_from=[a]"], "start_from is ['a']"),
        (["start_links=1"], "start_links is 1, but start_from names no chain"),
        (["method=full", "model.dtype=bfloat16"], "loses small updates"),
        (["adapter.target_modules=[q_proj,v_prj]"], "adapter.target_modules=['q_proj', 'v_prj']: 'v_prj' matches no"),
        (["adapter.layers_to_transform=[7]"], "with adapter.layers_to_transform=[7] matches no layer"),
        (["adapter.exclude_modules=[q_prj]"], "adapter.exclude_modules=['q_prj']: 'q_prj' matches no layer"),
        (["adapter.use_rslora=no"], "adapter.use_rslora is 'no': give true or false"),
        (["method=cola", "knots.unit=day"], "knots.unit is 'day'"),
        (["trainer.max_steps=null"], "trainer.max_steps is None"),
        (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps is 0"),
        (["+trainer.precision=16-mixed"], "trainer.precision is '16-mixed'"),
        (["+trainer.enable_progress_bar=no"], "trainer.enable_progress_bar is 'no'"),
        (["data.candidates=a"], "data.candidates is 'a': give a list of two answers or more"),
        (["data.tasks=[]"], "data.tasks is []"),
        (["data.seed=abc"], "data.seed is 'abc'"),
        (["data.options={leg_counting:3}"], "data.options is {'leg_counting': 3}"),
        (["data.max_new_tokens=5000"], "data.max_new_tokens is 5000, but the model reads"),
        (["method.seed=abc"], "method.seed is 'abc'"),
        (
            ["method=single_lora", "data.tasks=[chain_sum,leg_counting]", "method.names=[x,y]"],
            "there is an adapter for each of ['x', 'y'], but",
        ),
        (["method=icl", "method.demonstrations=-1"], "method.demonstrations is -1"),
        (["method=icl", "data.max_length=99"], "not one demonstration fits"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings(overrides: list[str], says: str, train: Train) -> None:
    done = train(*overrides, RUN)
    assert done.code != 0
    assert says in error_line(done.err)


REFUSED = [
    (["adapter.lora_bias=true"], "lora_bias"),  # with gaussian init: PEFT refuses it
    (["+adapter.no_such=1"], "no_such"),
    (["optim.lr=abc"], "optim"),
    (["optim.warmup=abc"], "optim"),
    (["seed=x"], "seed"),
    (["seed=-1"], "seed"),
    (["trainer.max_epochs=abc"], "trainer.max_epochs"),
    (["trainer.accelerator=warp"], "warp"),
    (["trainer.accumulate_grad_batches=0"], "accumulate_grad_batches"),
    (["trainer.gradient_clip_val=-1.0"], "gradient_clip_val"),
    (["checkpoint_every=abc"], "checkpoint_every"),
    (["checkpoint_every=0"], "checkpoint_every"),
    (["model=hf"], "model.name"),
    (["adapter.lora_alpha=abc"], "lora_alpha"),
    (["resume=no"], "resume"),  # no YAML, to Hydra: a text, which is true
    (["overwrite=no"], "overwrite"),
    (["model.prune_vocab=no"], "model.prune_vocab"),
    (["model.checkpointing=no"], "model.checkpointing"),
    (["+trainer.limit_val_batches=0"], "limit_val_batches"),
    (["trainer.devices=0"], "trainer.devices is 0"),
    (["trainer.strategy=deepspeed"], "trainer.strategy is 'deepspeed'"),
    (["trainer.compile=maybe"], "trainer.compile is 'maybe'"),
    (["checkpoint_seconds=-1"], "checkpoint_seconds is -1"),
    (["adapter.lora_alpha=0"], "adapter.lora_alpha is 0"),
]


@pytest.mark.parametrize(
    ("overrides", "says"),
    REFUSED,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_that_a_library_refuses(overrides: list[str], says: str, train: Train) -> None:
    done = train(*overrides, RUN)
    assert done.code != 0
    assert says in error_line(done.err)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["knots=plateau"], "knots is given, but lorachains.methods.Lora reads none of it"),
        (["method=full", "adapter.r=4"], "adapter is given, but lorachains.methods.Full reads none of it"),
        (["optim.warmup=2"], "optim.warmup is 2, but the run has 2 optimizer steps"),
        (["method=cola", "knots=none"], ""),
    ],
)
def test_settings_that_do_not_count_are_told(overrides: list[str], says: str, train: Train) -> None:
    done = train(*overrides, RUN)
    assert done.code == 0
    assert says in done.out + done.err
    assert says or "reads none of it" not in done.out + done.err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method=no_such", "Could not find 'method/no_such'"),
        ("model=no_such", "Could not find 'model/no_such'"),
        ("data=no_such", "Could not find 'data/no_such'"),
        ("optim.no_such=1", "Could not override 'optim.no_such'"),
        ("no_such=1", "Could not override 'no_such'"),
    ],
)
def test_hydra_says_itself_what_it_does_not_know(override: str, says: str, train: Train) -> None:
    done = train(override, RUN)
    assert done.code != 0
    assert says in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("limit", ["max_epochs", "max_steps"])
def test_a_run_of_no_step(limit: str, train: Train, tmp_path: Path) -> None:
    """It tests the adapter as it begins."""
    assert train(RUN, f"trainer.{limit}=0").code == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train/optimizer_steps"] == 0


def test_a_malformed_row(data_root: Path, train: Train, tmp_path: Path) -> None:
    shutil.copytree(
        data_root / "superglue" / "CB", tmp_path / "data" / "superglue" / "CB", copy_function=shutil.copyfile
    )
    path = tmp_path / "data" / "superglue" / "CB" / "train.jsonl"
    os.chmod(path.parent, 0o755)
    lines = path.read_text().splitlines()
    lines[16] = lines[16].replace('"label": "', '"label": "x')
    path.write_text("\n".join(lines))
    done = train("data=superglue", "data.task=cb", "data.root=data", RUN)
    assert done.code == 1
    assert "data/superglue/CB/train.jsonl:17: field 'label' is 'x" in error_line(done.err)


def test_a_used_folder(train: Train) -> None:
    assert train(RUN).code == 0
    done = train(RUN)
    assert done.code == 1
    assert "run already holds a finished run: add resume=true" in error_line(done.err)
    done = train(RUN, "resume=true")
    assert (done.code, "is finished: nothing to resume" in done.out) == (0, True)
    assert train(RUN, "overwrite=true").code == 0


def test_what_is_to_be_overwritten_stays_until_all_is_there_to_take_its_place(train: Train, tmp_path: Path) -> None:
    chain = ["method=chain_of_lora", "data.tasks=[chain_sum,syllogism]", "hydra.run.dir=run"]
    assert train(*chain).code == 0
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.suffix != ".log"]
    before = {path: path.read_bytes() for path in files if ".hydra" not in path.parts}
    for wrong, says in {
        "method.threshold=2": "threshold is 2",
        "data.tasks=[chain_sum,typo]": "typo",
        "method.start=run": "method.start lies in this run's own folder, which overwrite=true empties",
    }.items():
        done = train(*chain, "overwrite=true", wrong)
        assert done.code == 1
        assert says in error_line(done.err)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_chain_is_taken_over_for_the_same_rows_alone(train: Train) -> None:
    chain = ["method=chain_of_lora", "data.tasks=[chain_sum,syllogism]"]
    assert train(*chain, "hydra.run.dir=run").code == 0
    done = train(*chain, "hydra.run.dir=next", "method.start=run", "data.seed=1")
    assert done.code == 1
    assert "method.start=run was trained with data.seed=0, this run has 1: its experts may have" in error_line(done.err)
    done = train(*chain, "hydra.run.dir=next", "method.start=run", "data.max_length=500")
    assert done.code == 0
    assert "was trained with data.max_length=1024, this run has 500" in done.out + done.err


def test_a_corrupted_checkpoint(train: Train, tmp_path: Path) -> None:
    assert train(RUN, "checkpoint_seconds=0").code == 0
    (tmp_path / "run" / "metrics.json").unlink()
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    done = train(RUN, "resume=true")
    assert done.code == 1
    assert "last.ckpt can't be read" in error_line(done.err)


def test_resuming_with_other_settings(train: Train, tmp_path: Path) -> None:
    assert train(RUN, "checkpoint_seconds=0").code == 0
    (tmp_path / "run" / "metrics.json").unlink()
    done = train(RUN, "resume=true", "adapter.r=4")
    assert done.code == 1
    assert "adapter.r is 4 here and 8 in" in error_line(done.err)


def test_a_finished_run_of_other_settings_is_not_passed_off_as_this_one(train: Train) -> None:
    assert train(RUN).code == 0
    assert train(RUN, "resume=true", "adapter.r=4").code == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    done = train(RUN)
    assert done.code == 1
    assert "run" in error_line(done.err)
