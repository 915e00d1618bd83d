"""Pictures of a mixture: what each expert loses on each domain, and how often each block's router is right."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw_heat_map(losses: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Writes a PNG: a row for each domain, a column for each expert, the loss in nats a token in each field.

    Colours say by how much a loss is above the best of its row.
    """
    domains, experts = list(losses), list(next(iter(losses.values())))
    above = [[losses[d][e] - min(losses[d].values()) for e in experts] for d in domains]
    figure = Figure(figsize=(2 + 0.8 * len(experts), 1.5 + 0.5 * len(domains)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(above, cmap="viridis_r", aspect="auto")
    axis.set_xticks(range(len(experts)), experts, rotation=45, ha="right")
    axis.set_yticks(range(len(domains)), domains)
    axis.set(xlabel="expert", ylabel="domain")
    for row, domain in enumerate(domains):
        for column, expert in enumerate(experts):
            axis.text(column, row, f"{losses[domain][expert]:.2f}", ha="center", va="center", fontsize=8)
    figure.colorbar(image, label="nats a token above the best expert")
    figure.savefig(path, dpi=150)


def draw_blocks(accuracies: Sequence[float], voted: float, path: Path) -> None:
    """Writes a PNG: the accuracy of each block's router, in the order of the blocks, beside that of their vote."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(len(accuracies)), accuracies, "o-", label="each block")
    axis.axhline(voted, color="black", linestyle=":", label="vote")
    axis.set(xlabel="block", ylabel="router accuracy", ylim=(0, 1.02))
    axis.legend()
    figure.savefig(path, dpi=150)
