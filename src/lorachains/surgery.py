"""Experts put into a trained mixture, taken out of it, or replaced, each by itself (MoA: "iterated individually").

Nothing else is touched: the other experts' folders are copied byte for byte, and the other rows of the routers stay. A
new expert's row begins at its domain's prototype, the difference between what the routers read of its prompts and of
the other domains' in the mean, and is then fitted, with all others frozen, by the routers' own cross-entropy over all
domains' prompts: a convex problem.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lorachains.data.instructions import check_label
from lorachains.data.module import TaskDataModule
from lorachains.data.tokens import Encoded, padding_token, prompt_of
from lorachains.domains import perplexities
from lorachains.errors import LorachainsError
from lorachains.mixture import Mixture
from lorachains.mixture_format import About, attach_mixture, read_routers, save_routers
from lorachains.models import LanguageModel
from lorachains.peft_format import read_adapter, read_config

Item = TypeVar("Item")

STEPS = 100
"""Iterations of L-BFGS at most."""
PENALTY = 1e-4
"""The weight of a fitted row's squared distance from its beginning: without it separable domains have no best row."""


def put_in(folder: Path, name: str, adapter: Path, output: Path) -> About:
    """Copies a mixture with one expert more, or with another one by that name. A new expert's router row is zero.

    Raises:
        LorachainsError: there is no such mixture or adapter, the adapter has another rank or other layers, the
            name can't be a folder's, or `output` is there already.
    """
    about, weight = read_routers(folder)
    check_label(name, "name")
    if (rank := read_config(adapter).r) != (others := read_config(folder / about.names[0]).r):
        raise LorachainsError(
            f"adapter={adapter} has rank {rank}, the mixture's experts have {others}: train it with adapter.r={others}"
        )
    layers, theirs = (set(read_adapter(of).layers) for of in (adapter, folder / about.names[0]))
    if odd := sorted(layers ^ theirs):
        raise LorachainsError(
            f"adapter={adapter} and the mixture's experts differ in {odd[0]}: train it with their "
            "adapter.target_modules"
        )
    _copy(folder, output, about, leave_out=name)
    shutil.copytree(adapter, output / name)
    if name not in about.names:
        about = replace(about, names=[*about.names, name])
        weight = torch.cat([weight, weight.new_zeros(len(weight), 1, weight.shape[2])], 1)
    save_routers(output, about, weight)
    return about


def take_out(folder: Path, name: str, output: Path) -> About:
    """Copies a mixture without one of its experts.

    Raises:
        LorachainsError: there is no such mixture or expert, only two are left, or `output` is there already.
    """
    about, weight = read_routers(folder)
    if name not in about.names or len(about.names) < 3:
        raise LorachainsError(f"{name!r} can't be taken out of {', '.join(about.names)}: name one of three or more")
    kept = [i for i, other in enumerate(about.names) if other != name]
    _copy(folder, output, about, leave_out=name)
    top_k = None if about.top_k is None else min(about.top_k, len(kept))
    about = replace(about, names=[about.names[i] for i in kept], top_k=top_k)
    save_routers(output, about, weight[:, kept])
    return about


def fit_expert(base: LanguageModel, folder: Path, name: str, data: TaskDataModule, rows: int) -> None:
    """Fits one expert's router row to the training prompts of all domains, and writes the routers anew.

    Args:
        data: whose tasks are the mixture's experts.
        rows: so many of each domain at most.

    Raises:
        LorachainsError: the data lacks a domain.
    """
    mixture, about = attach_mixture(base, folder)
    pad, expert = padding_token(base.tokenizer), about.names.index(name)
    check_domains(data, about.names)
    by_task = dict(zip((task.name for task in data.tasks), _by_task(data, "train"), strict=True))
    chosen = [row for name in about.names for row in by_task[name][:rows]]
    labels = torch.tensor([about.names.index(data.tasks[row.task].name) for row in chosen])
    read = mixture.features([prompt_of(row) for row in chosen], labels.tolist(), pad)
    weight = mixture.routers.weight.detach()
    fitted = torch.stack(
        [fit_row(of_block, x, labels.to(x.device), expert) for of_block, x in zip(weight, read, strict=True)]
    )
    save_routers(folder, about, torch.cat([weight[:, :expert], fitted.unsqueeze(1), weight[:, expert + 1 :]], 1))


def fit_row(
    weight: Float[Tensor, "experts hidden"], read: Float[Tensor, "texts hidden"], labels: Int64[Tensor, " texts"],
    expert: int,
) -> Float[Tensor, " hidden"]:  # fmt: skip
    """One router's row of one expert, fitted with all others frozen.

    It begins where it is, or, if it is zero, at the domain's prototype.
    """
    weight, read = weight.double(), read.double()
    start = weight[expert] if (weight[expert] != 0).any() else prototype(weight, read, labels, expert)
    row = start.clone().requires_grad_()
    others = read @ weight.mT
    shares = torch.bincount(labels, minlength=len(weight)).double()
    each = 1 / (shares[labels] * (shares > 0).sum())  # each domain counts the same
    optimizer = torch.optim.LBFGS([row], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = others.index_copy(1, torch.tensor([expert], device=read.device), (read @ row).unsqueeze(1))
        value = (each * F.cross_entropy(logits, labels, reduction="none")).sum()
        value = value + PENALTY * (row - start).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return row.detach()


def prototype(
    weight: Float[Tensor, "experts hidden"], read: Float[Tensor, "texts hidden"], labels: Int64[Tensor, " texts"],
    expert: int,
) -> Float[Tensor, " hidden"]:  # fmt: skip
    """The mean of the others' rows, plus the direction from the other domains' mean to this one's.

    Of a length with which the two means are one logit apart.
    """
    mine = labels == expert
    apart = read[mine].mean(0) - read[~mine].mean(0)
    others = torch.cat([weight[:expert], weight[expert + 1 :]]).mean(0)
    return others + apart / apart.square().sum().clamp(min=1e-12)


def judged(base: LanguageModel, folder: Path, data: TaskDataModule, split: str) -> dict[str, float]:
    """What a mixture does with the rows of each of the data's tasks: `routed/<task>/perplexity`,
    `router/<task>/accuracy`.

    A task that is no expert's has a perplexity alone.
    """
    mixture, about = attach_mixture(base, folder)
    pad, losses, accuracy = padding_token(base.tokenizer), {}, {}
    for task, rows in zip(data.tasks, _by_task(data, split), strict=True):
        logits = torch.cat([mixture.logits([prompt_of(row) for row in part], pad) for part in _parts(rows)], 1)
        losses[task.name] = _loss(mixture, rows, logits, pad)
        if task.name in about.names:
            right = mixture.experts(logits) == about.names.index(task.name)
            accuracy[f"router/{task.name}/accuracy"] = float(right.double().mean())
    return perplexities("routed", losses) | accuracy


def table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Both `judged`, side by side, as Markdown."""
    lines = ["| | before | after |", "|---|---|---|"]
    for key in [*before, *(key for key in after if key not in before)]:
        shown = [f"{found[key]:.4g}" if key in found else "" for found in (before, after)]
        lines.append(f"| {key} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


def _loss(mixture: Mixture, rows: Sequence[Encoded], logits: Tensor, pad: int) -> float:
    """The mean over the gold answers' tokens, in nats."""
    gold, total, start = [row.choices[row.example.gold] for row in rows], 0.0, 0
    for part in _parts(gold):
        of_part = logits[:, start : start + len(part)]
        found = mixture.losses(part, range(len(part)), of_part, pad).tolist()
        total += sum(loss * len(text.answer) for loss, text in zip(found, part, strict=True))
        start += len(part)
    return total / sum(len(text.answer) for text in gold)


def _parts(items: Sequence[Item], size: int = 32) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _by_task(data: TaskDataModule, split: str) -> list[list[Encoded]]:
    return [[row for row in data.rows(split) if row.task == task] for task in range(len(data.tasks))]


def check_domains(data: TaskDataModule, names: Sequence[str]) -> None:
    """Raises `LorachainsError` where an expert's domain is none of the data's tasks."""
    if missing := sorted(set(names) - {task.name for task in data.tasks}):
        raise LorachainsError(f"there are no rows of {', '.join(missing)}: give data.tasks=[{','.join(names)}]")


def _copy(folder: Path, output: Path, about: About, leave_out: str) -> None:
    """The experts' folders but for one."""
    if output.exists():
        raise LorachainsError(f"output={output} is there already: give a folder that is not")
    for name in about.names:
        if name != leave_out:
            shutil.copytree(folder / name, output / name)
