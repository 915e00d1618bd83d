"""The other side of the benchmarks: HF Trainer + PEFT as a competent user runs them, without our banks and methods.

Each function returns a dict of plain values: times in seconds of wall time, losses in nats an answer token. Steps are
timed by CUDA events that are read when all is done: measuring never makes the host wait.

`settings` is "default" (Trainer's own) or "best" (`_best`). "best" allows TF32, and replaces transformers' kernels by
liger-kernel's where that is installed, both for the rest of the process. The weights' precision is the caller's.

`train`, `run` and `mixed_training_step` work on the model given and take their adapters out again; it stays frozen, on
`device`. `generate` and `xlora_step` work on a copy. All drop what `torch.compile` has compiled in this process so far.
"""

import copy
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import compress, pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from peft import LoraConfig, PeftModel, XLoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils.import_utils import is_liger_kernel_available

from lorachains.batch import IGNORED, Tokens
from lorachains.data import TaskDataModule
from lorachains.data.tokens import Encoded, encode_eval, encode_train
from lorachains.errors import LorachainsError
from lorachains.models import LanguageModel

Figures = dict[str, Any]


def train(
    lm: LanguageModel, rows: Sequence[Tokens], *, settings: str, batch_size: int, lr: float, seed: int, device: str,
    steps: int | None = None, epochs: int | None = None, warmup: int = 10, record: bool = False,
    start: Path | None = None, overrides: Mapping[str, Any] | None = None,
) -> Figures:  # fmt: skip
    """Trains a LoRA: linear schedule, no warm-up of the rate, AdamW without weight decay.

    Args:
        steps, epochs: optimizer steps, or passes over the rows; give one of the two.
        warmup: optimizer steps that the figures of a step leave out; those that compile should be among them.
        record: keep each step's loss, for which the host waits for the device in each step.
        start: a PEFT adapter to begin with, to compare with another run from there; else a new one, drawn by `seed`.
        overrides: further `TrainingArguments`, such as `max_grad_norm=0` or `train_sampling_strategy="sequential"`;
            none that makes batches elsewhere or several for a step (workers, accumulation): tokens would be miscounted.

    Returns:
        steps; seconds of `Trainer.train`, compilation included; step_seconds, the median, with data loading and the
        host's work; tokens_per_second without padding, over all steps after the warm-up; loss, the mean of all steps;
        losses of each; peak_memory_bytes (0 on the CPU); liger, whether it was used.
    """
    if (steps is None) == (epochs is None):
        raise LorachainsError(f"steps is {steps} and epochs is {epochs}: give one of the two")
    given: Figures = {"per_device_train_batch_size": batch_size, "learning_rate": lr, "seed": seed}
    given |= {"max_steps": steps} if epochs is None else {"num_train_epochs": epochs}
    given |= ({"logging_steps": 1} if record else {}) | dict(overrides or {})
    with _adapted(lm, device, seed, start) as model:
        return _fit(model, lm.tokenizer, rows, settings, device, warmup, given, [])


def run(
    lm: LanguageModel, data: TaskDataModule, *, settings: str, lr: float, seed: int, device: str, epochs: int = 5,
    warmup: int = 10, overrides: Mapping[str, Any] | None = None,
) -> Figures:  # fmt: skip
    """A whole run: trains, validates after each epoch, tests the best. Writes no checkpoints, which is in HF's favour.

    A candidate's score is the mean log-likelihood of its tokens, over padded batches of `data.eval_batch_size` texts
    with full logits. Raises `LorachainsError` where an example has no candidates.

    Returns:
        training, as of `train`; seconds of everything, tokenising included; evaluation_seconds; val_accuracy of each
        epoch; best_epoch, from 1; test_accuracy.
    """
    begin = time.perf_counter()
    data.setup()
    rows = {split: _encode(data, split) for split in ("train", "val", "test")}
    given = {"per_device_train_batch_size": data.batch_size, "learning_rate": lr, "seed": seed}
    given |= {"num_train_epochs": epochs} | dict(overrides or {})
    with _adapted(lm, device, seed) as model:
        score = partial(accuracy, model, tokenizer=lm.tokenizer, batch_size=data.eval_batch_size)
        best = _BestEpoch(partial(score, rows["val"]), device)
        texts = [row.choices[0] for row in rows["train"]]
        training = _fit(model, lm.tokenizer, texts, settings, device, warmup, given, [best])
        model.load_state_dict(best.adapter, strict=False)
        best.clock.mark()
        test_accuracy = score(rows["test"])
        best.clock.mark()
        evaluation_seconds = sum(best.clock.seconds()[::2])
    return {
        "training": training, "seconds": time.perf_counter() - begin, "evaluation_seconds": evaluation_seconds,
        "val_accuracy": best.scores, "best_epoch": best.scores.index(max(best.scores)) + 1,
        "test_accuracy": test_accuracy,
    }  # fmt: skip


def generate(
    lm: LanguageModel, adapters: int, prompts: Sequence[str], max_new_tokens: int, *, device: str, seed: int = 0,
    repeats: int = 5, cache: str | None = None,
) -> dict[str, Figures]:  # fmt: skip
    """Greedy continuations of exactly `max_new_tokens`, all prompts in one batch.

    Args:
        adapters: random LoRAs in the model's precision; prompt i gets the one of number i modulo `adapters`.
        cache: transformers' `cache_implementation`, such as "static"; None for its default.

    Returns:
        "mixed", by PEFT's `adapter_names`, and "merged", all prompts by adapter 0 in the weights: for each the median
        seconds, tokens_per_second and texts (the continuations).
    """
    set_seed(seed)
    base: Any = copy.deepcopy(lm.model)
    base.to(device).generation_config.eos_token_id = None  # no row ends early
    model = _with_random_adapters(base, adapters).eval()
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, cache_implementation=cache,
        pad_token_id=lm.tokenizer.pad_token_id,
    )  # fmt: skip
    inputs = lm.tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(device)
    prompt = {key: inputs[key] for key in ("input_ids", "attention_mask")} | {"generation_config": config}

    def figures(continued: Callable[[], Tensor]) -> Figures:
        torch.compiler.reset()
        new = continued()[:, inputs["input_ids"].shape[1] :]
        seconds = _median(continued, device, warmup=2, times=repeats)
        return {"seconds": seconds, "tokens_per_second": new.numel() / seconds, "texts": lm.tokenizer.batch_decode(new)}

    names = [str(i % adapters) for i in range(len(prompts))]
    mixed = figures(lambda: model.generate(**prompt, adapter_names=names))
    merged = model.merge_and_unload(adapter_names=["0"])
    return {"mixed": mixed, "merged": figures(lambda: merged.generate(**prompt))}


def mixed_training_step(
    lm: LanguageModel, rows: Sequence[Tokens], *, settings: str, device: str, lr: float = 5e-4, seed: int = 0,
    warmup: int = 10, steps: int = 50,
) -> Figures:  # fmt: skip
    """Forward, backward and AdamW step of ONE adapter on the batch of `rows`: PEFT trains no mixed batch.

    "best" is bf16 autocast and `torch.compile`. Returns the median seconds and the first step's loss.
    """
    with _adapted(lm, device, seed) as model:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.0, fused=True)

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()

        compiled = torch.compile(model.train()) if _is_best(settings) else model.train()
        return _steps(compiled, lm, rows, settings, device, update, warmup, steps)


def xlora_step(
    lm: LanguageModel, adapters: int, rows: Sequence[Tokens], *, device: str, trainable_adapters: bool = False,
    seed: int = 0, warmup: int = 10, steps: int = 50,
) -> Figures:  # fmt: skip
    """Forward and backward of PEFT's X-LoRA (arXiv 2402.07148) over random adapters, on the batch of `rows`.

    X-LoRA's own way trains the router alone; with `trainable_adapters` the adapters too. Returns the median seconds and
    the first loss. PEFT raises `ValueError` for Bloom and GPT-2, since it can't map the names of their layers.
    """
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        _with_random_adapters(copy.deepcopy(lm.model), adapters).save_pretrained(folder, save_embedding_layers=False)
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=lm.model.config.hidden_size,
            adapters={str(i): str(Path(folder, str(i))) for i in range(adapters)},  # PEFT knows no other names
            use_trainable_adapters=trainable_adapters,
        )
        model = get_peft_model(copy.deepcopy(lm.model), config).to(device).train()
    return _steps(model, lm, rows, "default", device, model.zero_grad, warmup, steps)


@torch.no_grad()
def accuracy(model: nn.Module, rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, batch_size: int) -> float:
    """How often the candidate of the highest mean log-likelihood a token is right. Leaves `model` in eval mode."""
    model.eval()
    collate = _collator(tokenizer, "default")
    texts = [(row, choice) for row, encoded in enumerate(rows) for choice in range(len(encoded.choices))]
    texts.sort(key=lambda text: -len(rows[text[0]].choices[text[1]].input_ids))
    means = []
    for start in range(0, len(texts), batch_size):
        chunk = [rows[row].choices[choice] for row, choice in texts[start : start + batch_size]]
        batch = collate(_columns(chunk)).to(next(model.parameters()).device)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        losses = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")
        answer = batch["labels"][:, 1:] != IGNORED
        means.append(-losses.view_as(answer).sum(1) / answer.sum(1))
    scores = dict(zip(texts, torch.cat(means).tolist(), strict=True))
    best = [max(range(len(row.choices)), key=lambda choice: scores[i, choice]) for i, row in enumerate(rows)]
    return fmean(choice == row.example.gold for choice, row in zip(best, rows, strict=True))


@dataclass
class Clock:
    """Moments on the device's own time line."""

    device: torch.device
    marks: list[Any] = field(default_factory=list)

    def mark(self) -> None:
        """Takes the moment when the device will have done all that it was asked so far."""
        if self.device.type == "cuda":
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each mark to the next."""
        if self.device.type != "cuda":
            return [after - before for before, after in pairwise(self.marks)]
        torch.cuda.synchronize(self.device)
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(self.marks)]


class _StepTimes(TrainerCallback):
    """Times each optimizer step from the end of the one before; what lies between two epochs belongs to none."""

    def __init__(self, device: str) -> None:
        self.clock = Clock(torch.device(device))
        self.ends: list[bool] = []  # of the marks, which end a step

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.clock.mark()
        self.ends.append(False)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.mark()
        self.ends.append(True)

    def seconds(self) -> list[float]:
        return list(compress(self.clock.seconds(), self.ends[1:]))


class _BestEpoch(TrainerCallback):
    """Scores each epoch, and keeps the best one's adapter (the first of equals)."""

    def __init__(self, score: Callable[[], float], device: str) -> None:
        self.score, self.clock = score, Clock(torch.device(device))
        self.scores: list[float] = []
        self.adapter: dict[str, Tensor] = {}

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.mark()
        self.scores.append(self.score())
        if self.scores.index(max(self.scores)) == len(self.scores) - 1:
            parameters = kwargs["model"].named_parameters()
            self.adapter = {name: p.detach().clone() for name, p in parameters if p.requires_grad}
        self.clock.mark()


@dataclass
class _Collator(DataCollatorForSeq2Seq):
    """Counts each batch's tokens on the host, where they are still lists."""

    tokens: list[int] = field(default_factory=list)

    def __call__(self, features: list[dict[str, list[int]]], return_tensors: str | None = None) -> Any:
        self.tokens.append(sum(len(row["input_ids"]) for row in features))
        return super().__call__(features, return_tensors)


def _fit(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tokens], settings: str, device: str,
    warmup: int, given: Mapping[str, Any], callbacks: Sequence[TrainerCallback],
) -> Figures:  # fmt: skip
    collate, times, cuda = _collator(tokenizer, settings), _StepTimes(device), torch.device(device).type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**{**_arguments(settings, cuda), **given, "output_dir": folder})
        trainer = Trainer(model, arguments, collate, _columns(rows), callbacks=[times, *callbacks])
        trainer.remove_callback(PrinterCallback)
        _check_warmup(trainer, warmup)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        begin = time.perf_counter()
        output = trainer.train()
        steps = times.seconds()  # waits for the device
        seconds = time.perf_counter() - begin
    tokens = sum(collate.tokens[warmup : len(steps)])
    return {
        "steps": len(steps), "seconds": seconds, "step_seconds": median(steps[warmup:]),
        "tokens_per_second": tokens / sum(steps[warmup:]), "loss": output.training_loss,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else 0, "liger": arguments.use_liger_kernel,
    }  # fmt: skip


def _check_warmup(trainer: Trainer, warmup: int) -> None:
    args = trainer.args
    steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * len(trainer.get_train_dataloader()))
    if steps <= warmup:
        raise LorachainsError(f"warmup is {warmup}, but there are {steps} steps: train for longer")


def _arguments(settings: str, cuda: bool) -> dict[str, Any]:
    if cuda and torch.cuda.device_count() > 1:
        raise LorachainsError(
            f"{torch.cuda.device_count()} GPUs are visible, over which Trainer would spread: set CUDA_VISIBLE_DEVICES=0"
        )
    always = {"use_cpu": not cuda, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    return always | (_best(cuda) if _is_best(settings) else {})


def _best(cuda: bool) -> dict[str, Any]:
    """What makes Trainer faster on one device and changes no more than the rounding and which rows share a batch."""
    on_cuda = {
        "tf32": True, "dataloader_pin_memory": True, "accelerator_config": {"non_blocking": True},
        "use_liger_kernel": is_liger_kernel_available(),
    }  # fmt: skip
    return {
        "bf16": True, "optim": "adamw_torch_fused", "torch_compile": True, "train_sampling_strategy": "group_by_length",
        "logging_nan_inf_filter": False,  # waits for the device in each step
    } | (on_cuda if cuda else {})  # fmt: skip


def _is_best(settings: str) -> bool:
    if settings not in ("default", "best"):
        raise LorachainsError(f"settings is {settings!r}: give default or best")
    return settings == "best"


@contextmanager
def _adapted(lm: LanguageModel, device: str, seed: int, start: Path | None = None) -> Iterator[PeftModel]:
    """The model with one LoRA to train, within."""
    torch.compiler.reset()  # another model's compiled code would count towards the limit of recompilations
    set_seed(seed)
    base: Any = lm.model
    base.to(device)
    adapted: PeftModel
    if start is None:
        adapted = get_peft_model(base, _lora("gaussian"))
    else:
        adapted = PeftModel.from_pretrained(base, start, is_trainable=True, torch_device=device)
    try:
        yield adapted
    finally:
        adapted.unload()
        del adapted
        gc.collect()  # Trainer and its callbacks hold each other


def _lora(init: Any) -> LoraConfig:
    """COLA App. A.1 (conf/peft/lora.yaml); PEFT chooses the layers."""
    return LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, init_lora_weights=init)


def _with_random_adapters(base: nn.Module, adapters: int) -> PeftModel:
    """Named "0", "1", …; for inference, so in the weights' precision, which is faster."""
    model = get_peft_model(base, _lora(False), adapter_name="0", autocast_adapter_dtype=False)
    for i in range(1, adapters):
        model.add_adapter(str(i), _lora(False), autocast_adapter_dtype=False)
    return model


def _collator(tokenizer: PreTrainedTokenizerBase, settings: str) -> _Collator:
    right = copy.copy(tokenizer)  # it may pad on the left, for generation, and then positions would have to be given
    right.padding_side = "right"
    return _Collator(right, pad_to_multiple_of=8 if _is_best(settings) else None)


def _columns(rows: Sequence[Tokens]) -> list[dict[str, list[int]]]:
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]


def _encode(data: TaskDataModule, split: str) -> list[Encoded]:
    encode = encode_train if split == "train" else encode_eval
    examples = [(task, getattr(splits, split)) for task, splits in enumerate(data.splits)]
    rows = [row for task, some in examples for row in encode(data.tokenizer, some, task, data.max_length)]
    if free := next((row.example for row in rows if not row.example.candidates), None):
        raise LorachainsError(f"{free.source} has no candidates to choose from: take a task that has, such as rte")
    return rows


def _steps(
    model: Callable[..., Any], lm: LanguageModel, rows: Sequence[Tokens], settings: str, device: str,
    update: Callable[[], None], warmup: int, times: int,
) -> Figures:  # fmt: skip
    batch = _collator(lm.tokenizer, settings)(_columns(rows)).to(device)

    def step() -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=_is_best(settings)):
            loss: Tensor = model(**batch).loss
        loss.backward()
        update()
        return loss.detach()

    return {"loss": step().item(), "seconds": _median(step, device, warmup, times)}


def _median(step: Callable[[], Any], device: str, warmup: int, times: int) -> float:
    """Seconds."""
    clock = Clock(torch.device(device))
    for _ in range(warmup):
        step()
    clock.mark()
    for _ in range(times):
        step()
        clock.mark()
    return median(clock.seconds())
