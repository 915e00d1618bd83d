"""What is told of the links of a chain: in the log when a knot is tied, and of all of them in `knots.jsonl`."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorachains.spectra import layer_link

if TYPE_CHECKING:
    from lorachains.methods.cola import Cola

MEANS = ("effective_rank", "overlap_A", "overlap_B")
"""What is averaged over the layers; norms are of all layers together."""
NUMBERS = ("norm", "chain_norm", *MEANS)

Row = dict[str, Any]


def of_link(method: "Cola", run: int, link: int) -> list[Row]:
    """One link of a run, counted from 0, the live one last: a row for each adapter, named if there are several.

    Numbers over all layers, and those of each layer (`LayerLink`); none where training has diverged.
    """
    chain, several = method.chain, len(method.names) > 1
    ranks = [*chain.ranks, chain.rank]
    start, end = sum(ranks[:link]), sum(ranks[: link + 1])
    rows = []
    for i, name in enumerate(method.names):
        expert = run * len(method.names) + i
        layers = {layer: layer_link(bank, expert, start, end) for layer, bank in chain.banks.items()}
        finite = {layer: asdict(found) for layer, found in layers.items() if found is not None}
        numbers = _over_layers(finite.values()) if len(finite) == len(layers) else {}
        adapter = {"adapter": name} if several else {}
        rows.append({"link": link + 1, **adapter, "rank": ranks[link], **numbers, "layers": finite})
    return rows


def scalars(rows: Iterable[Row]) -> dict[str, float]:
    """The numbers of a link's rows, as they are logged: `knot/norm`, or `knot/norm/<adapter>` if there are several."""
    return {
        f"knot/{key}/{row['adapter']}" if "adapter" in row else f"knot/{key}": row[key]
        for row in rows
        for key in NUMBERS
        if key in row
    }


def all_links(method: "Cola", run: int) -> list[Row]:
    """The lines of `knots.jsonl`: `of_link` of the links trained here, with the knot's drift and the losses around it.

    `loss_before` is the last training loss that was logged by the link's end, `loss_after` the next one.
    """
    history = [(metrics, step) for of, metrics, step in method.journal.history if of == run]
    drifts = {step: metrics for metrics, step in history if "knot/drift" in metrics}
    rows = []
    for link, step in enumerate([*method.chain.knots_here, method.trainer.global_step], method.chain.inherited):
        knot = {key: drifts.get(step, {}).get(f"knot/{key}") for key in ("drift", "merge_loss")}
        for row in of_link(method, run, link):
            losses = _losses(history, step, f"train/loss/{row['adapter']}" if "adapter" in row else "train/loss")
            rows.append({"link": link + 1, "optimizer_step": step, **losses, **knot, **row})
    return rows


def _over_layers(layers: Iterable[dict[str, Any]]) -> dict[str, float]:
    each = list(layers)
    norms = {key: sum(layer[key] ** 2 for layer in each) ** 0.5 for key in NUMBERS[:2]}
    return norms | {key: sum(layer[key] for layer in each) / len(each) for key in MEANS if each[0][key] is not None}


def _losses(history: Sequence[tuple[dict[str, float], int]], step: int, key: str) -> dict[str, float | None]:
    before = [metrics[key] for metrics, at in history if at <= step and key in metrics]
    after = (metrics[key] for metrics, at in history if at > step and key in metrics)
    return {"loss_before": before[-1] if before else None, "loss_after": next(after, None)}
