"""Chains of activated adapters: trained, resumed, saved as PEFT's aLoRAs, and answering from one reading."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import lorachains
from lorachains.answering.engine import Answerer
from lorachains.answering.prompts import ActivatedPrompts
from lorachains.errors import LorachainsError
from lorachains.jobs import train_jobs
from lorachains.loading import attach_adapter
from lorachains.run_folder import RunFolder
from tests.data.stub import StubSource
from tests.jobs import job, metrics, predictions, trained
from tests.runs import language_model, run

TASKS = ["one", "two", "free"]
TEXTS = ["one 3 xxxx?", "two 5 xx?", "free 9 x?", "something else altogether?"]
SETTINGS = ["method=chain_of_lora", "method.task_prompt='{instruction} Task:'", "optim.lr=2e-2",
            "adapter.target_modules=all-linear", "trainer.max_epochs=1", "method.select=loss"]  # fmt: skip
SIZES: dict[str, Any] = {"train_size": 9, "val_size": 4, "test_size": 4, "max_length": 128}


@pytest.fixture(scope="module", autouse=True)
def _template() -> Any:
    """All prompts end in the same words."""
    patch = pytest.MonkeyPatch()
    patch.setattr(StubSource, "template", "{instruction}x?", raising=False)
    yield
    patch.undo()


def base(arch: str = "llama") -> Any:
    return language_model(arch, dtype=torch.float64)


@pytest.fixture(scope="module", params=["selector", "all"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(mode: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(mode)
    trained([job(path, *SETTINGS, f"method.activated={mode}", tasks=TASKS, **SIZES)])
    return path


def both(folder: Path, **changes: Any) -> tuple[Answerer, Answerer]:
    """The chain with one reading of each instruction, and with one for each adapter."""
    one, each = (lorachains.load(str(folder), base=base(), **changes) for _ in range(2))
    assert one.reuses
    each.reuses = False
    return one, each


def test_saved_adapters_are_pefts_and_the_selectors_scores_are_its(folder: Path, mode: str) -> None:
    """PEFT finds the invocation by itself, from the saved config."""
    assert json.loads((folder / "chain.json").read_text())["activated"] == mode
    for name in ("selector", *TASKS):
        config = json.loads((folder / "adapters" / name / "adapter_config.json").read_text())
        assert (config["alora_invocation_tokens"] is not None) == (mode == "all" or name == "selector")
    theirs, tokenizer = PeftModel.from_pretrained(base().model, str(folder / "adapters" / "selector")), base().tokenizer
    one, each = both(folder)
    for answerer in (one, each):
        prompts = [text + "x?" for text in TEXTS]
        for text, row in zip(prompts, answerer.scores(prompts).tolist(), strict=True):
            for task, score in zip(TASKS, row, strict=True):
                answer = [*tokenizer.encode(f" {task}"), tokenizer.eos_token_id]
                tokens = tokenizer.encode(f"{text} Task:") + answer
                with torch.no_grad():
                    logits = theirs(input_ids=torch.tensor([tokens])).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
                assert score == pytest.approx(float(logits.gather(1, torch.tensor([answer]).T).sum()))


@pytest.mark.parametrize(
    ("changes", "k"),
    [
        *(({"threshold": threshold}, k) for threshold in (0.0, 0.9, 1.0) for k in (1, 3)),
        ({"selection": "generate"}, 1),
    ],
)
def test_answers_are_the_same_from_one_reading(folder: Path, changes: dict[str, Any], k: int) -> None:
    one, each = both(folder, **changes)
    held = lorachains.load(str(folder), base=base(), resident=True, **changes)
    assert not held.reuses
    told = [[(a.choice.adapter, a.choice.tasks, [(r.adapter, r.text) for r in a.replies])
             for a in answerer.generate(TEXTS, 6, k=k, batch_size=3)]
            for answerer in (one, each, held)]  # fmt: skip
    assert told[0] == told[1] == told[2]


def test_a_generated_name_is_one(folder: Path) -> None:
    with pytest.raises(LorachainsError, match="top_k is 3, but a generated name is one: choose selection=exact"):
        lorachains.load(str(folder), base=base(), selection="generate").generate(TEXTS, 6, k=3)


def test_an_activated_experts_text_is_pefts(folder: Path, mode: str) -> None:
    if mode == "selector":
        pytest.skip("its experts are ordinary adapters")
    one, _ = both(folder)
    for text, answered in zip(TEXTS, one.generate(TEXTS, 6, k=3), strict=True):
        for reply in answered.replies:
            theirs, tokenizer = base(), base().tokenizer
            model = PeftModel.from_pretrained(theirs.model, str(folder / "adapters" / reply.adapter))
            ids = torch.tensor([tokenizer.encode(f"{text}x?")])
            new = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
            assert reply.text == str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def test_one_of_its_experts_answers_alone_as_in_the_chain(folder: Path) -> None:
    one, _ = both(folder)
    told = [{r.adapter: r.text for r in answered.replies} for answered in one.generate(TEXTS, 6, k=3)]
    for task in TASKS:
        alone = lorachains.load(str(folder), base=base(), expert=task)
        assert [a.replies[0].text for a in alone.generate(TEXTS, 6)] == [texts[task] for texts in told]


def test_an_instruction_that_is_nothing_is_refused(folder: Path) -> None:
    one, _ = both(folder)
    with pytest.raises(LorachainsError, match="an instruction is empty"):
        one.generate(["one?", ""])


def test_long_instructions_are_cut_alike_for_all(folder: Path) -> None:
    one, each = both(folder)
    texts = ["y" * 300 + "xxxx?", "z" * 300]
    assert isinstance(one.prompts, ActivatedPrompts)
    longest = max(len(t.input_ids) for t in one.prompts.named(texts[0]))
    assert longest == one.prompts.max_length == 128
    assert [a.replies[0].text for a in one.generate(texts, 4)] == [a.replies[0].text for a in each.generate(texts, 4)]


def test_figures_are_those_of_the_chain_loaded_again(folder: Path) -> None:
    """The selector's own log-likelihoods of the test rows, and its accuracy."""
    one, _ = both(folder)
    asked = [row for row in predictions(folder) if row["task"] == "selector" and row["prompt"].endswith("x? Task:")]
    assert asked
    found = one.scores([row["prompt"].removesuffix(" Task:") for row in asked])
    torch.testing.assert_close(found, torch.tensor([row["candidates"] for row in asked], dtype=torch.float64))
    assert metrics(folder)["test/selector/top3"] == 1


def test_an_architecture_that_reads_no_stream_reads_for_each_adapter(tmp_path: Path) -> None:
    trained([job(tmp_path, *SETTINGS, "method.activated=all", "adapter.target_modules=[query_key_value]", arch="bloom",
                 dtype="float32", tasks=TASKS, **SIZES)])  # fmt: skip
    answerer = lorachains.load(str(tmp_path), base=language_model("bloom"))
    assert not answerer.reuses
    held = lorachains.load(str(tmp_path), base=language_model("bloom"), resident=True)
    told = [[a.replies[0].text for a in some.generate(TEXTS, 5)] for some in (answerer, held)]
    assert told[0] == told[1]


class _Killed(Exception):
    pass


class _Kill(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            raise _Killed


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    data = {"tasks": TASKS, **SIZES}
    settings = [*SETTINGS, "method.activated=all", f"+method.names=[{','.join(TASKS)}]"]
    run(tmp_path / "whole", *settings, base=base(), data=data)
    with pytest.raises(_Killed):
        run(tmp_path / "killed", *settings, base=base(), data=data, callbacks=[_Kill()])
    run(tmp_path / "killed", *settings, base=base(), data=data, resume=True)
    for name in ("selector", *TASKS):
        ours, theirs = (
            load_file(RunFolder(tmp_path / way).adapters / name / "adapter_model.safetensors")
            for way in ("killed", "whole")
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_an_activated_adapter_is_not_taken_for_an_ordinary_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LorachainsError, match=r"is an activated LoRA"):
        attach_adapter(base(), folder / "adapters" / "selector")
    for changed in ("none", "selector", "all"):
        path = folder / "chain.json"
        text = path.read_text()
        settings = json.loads(text)
        if changed == settings["activated"]:
            continue
        path.write_text(json.dumps(settings | {"activated": changed}))
        with pytest.raises(LorachainsError, match=rf"with chain.json's activated={changed} it has to be"):
            lorachains.load(str(folder), base=base())
        path.write_text(text)
    start = [f"method.start={folder}", "method.activated=none"]
    [outcome] = train_jobs([job(tmp_path, *SETTINGS, *start, tasks=TASKS, **SIZES)])
    ordinary = json.loads((folder / "chain.json").read_text())["activated"] == "selector"
    assert isinstance(outcome, Exception) != ordinary


def test_prompts_without_room_for_a_request_are_refused(tmp_path: Path) -> None:
    short = {"tasks": TASKS, **SIZES, "max_length": 8}
    [outcome] = train_jobs([job(tmp_path, *SETTINGS, "method.activated=all", **short)])
    assert "data.max_length is 8, but what activated adapters read behind a request takes " in str(outcome)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method.activated=some", "method.activated is 'some': choose none, selector, all"),
        ("method.task_prompt='Of {instruction}:'", "begin it with {instruction}"),
    ],
)
def test_settings_that_can_not_be_followed(override: str, says: str, tmp_path: Path) -> None:
    [outcome] = train_jobs([job(tmp_path, *SETTINGS, "method.activated=all", override, tasks=TASKS, **SIZES)])
    while isinstance(outcome, Exception) and not isinstance(outcome, LorachainsError):
        assert isinstance(outcome.__cause__, Exception)
        outcome = outcome.__cause__
    assert says in str(outcome)
