"""What is told of the links of a chain: in the log when a knot is tied, and of all of them in `knots.jsonl`."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorachains.spectra import layer_links

if TYPE_CHECKING:
    from lorachains.methods.cola import Cola

MEANS = ("effective_rank", "overlap_A", "overlap_B")
"""What is averaged over the layers; norms are of all layers together."""
NUMBERS = ("norm", "chain_norm", *MEANS)

Row = dict[str, Any]


def of_link(method: "Cola", link: int) -> list[list[Row]]:
    """One link of each run, counted from 0, the live one last: a row for each adapter, named if there are several.

    Numbers over all layers, and those of each layer (`LayerLink`); none where training has diverged.
    """
    chain, names = method.chain, method.names
    ranks = [*chain.ranks, chain.rank]
    rows = []
    for i, layers in enumerate(layer_links(chain.banks, sum(ranks[:link]), sum(ranks[: link + 1]))):
        finite = {layer: asdict(found) for layer, found in layers.items()}
        numbers = _over_layers(finite.values()) if len(finite) == len(chain.banks) else {}
        adapter = {"adapter": names[i % len(names)]} if len(names) > 1 else {}
        rows.append({"link": link + 1, **adapter, "rank": ranks[link], **numbers, "layers": finite})
    return [rows[i : i + len(names)] for i in range(0, len(rows), len(names))]


def scalars(rows: Iterable[Row]) -> dict[str, float]:
    """The numbers of a link's rows, as they are logged: `knot/norm`, or `knot/norm/<adapter>` if there are several."""
    return {
        f"knot/{key}/{row['adapter']}" if "adapter" in row else f"knot/{key}": row[key]
        for row in rows
        for key in NUMBERS
        if key in row
    }


def all_links(method: "Cola") -> list[list[Row]]:
    """Each run's lines of `knots.jsonl`: `of_link` of the links trained here, the knot's drift, the losses around it.

    `loss_before` is the last training loss that was logged by the link's end, `loss_after` the next one.
    """
    ends = [*method.chain.knots_here, method.trainer.global_step]
    links = [of_link(method, link) for link in range(method.chain.inherited, method.chain.inherited + len(ends))]
    lines = list[list[Row]]()
    for run in range(len(method.seeds)):
        history = [(metrics, step) for of, metrics, step in method.journal.history if of == run]
        drifts = {step: metrics for metrics, step in history if "knot/drift" in metrics}
        lines.append([])
        for step, rows in zip(ends, links, strict=True):
            knot = {key: drifts.get(step, {}).get(f"knot/{key}") for key in ("drift", "merge_loss")}
            for row in rows[run]:
                losses = _losses(history, step, f"train/loss/{row['adapter']}" if "adapter" in row else "train/loss")
                lines[-1].append({"link": row["link"], "optimizer_step": step, **losses, **knot, **row})
    return lines


def _over_layers(layers: Iterable[dict[str, Any]]) -> dict[str, float]:
    each = list(layers)
    norms = {key: sum(layer[key] ** 2 for layer in each) ** 0.5 for key in NUMBERS[:2]}
    return norms | {key: sum(layer[key] for layer in each) / len(each) for key in MEANS if each[0][key] is not None}


def _losses(history: Sequence[tuple[dict[str, float], int]], step: int, key: str) -> dict[str, float | None]:
    before = [metrics[key] for metrics, at in history if at <= step and key in metrics]
    after = (metrics[key] for metrics, at in history if at > step and key in metrics)
    return {"loss_before": before[-1] if before else None, "loss_after": next(after, None)}
