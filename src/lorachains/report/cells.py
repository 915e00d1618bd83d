"""The cells of a table: the runs of one row and column, and which of their settings validation chooses.

What is chosen is a function of validation results alone: `choose` is given nothing else.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from lorachains.errors import LorachainsError
from lorachains.report.layout import Layout, kind, natural
from lorachains.report.reading import Run, is_share


@dataclass(frozen=True)
class Candidate:
    """Runs of one cell that differ in their seeds alone.

    Attributes:
        runs: the finished ones, by seed.
        unfinished: how many more have begun.
        score: the mean validation score, in the metric's unit (in nats, if the loss chooses); `None` if unknown.
    """

    runs: Mapping[tuple[str, ...], Run]
    unfinished: int
    score: float | None


@dataclass(frozen=True)
class Cell:
    """One row and column.

    Attributes:
        keys: the settings of which the row's label is made.
        metric: the test metric's name; the same all down a column.
        candidates: by the settings among which was chosen.
        chosen: the settings that were; `None` if no run is finished.
        asked: how many runs each candidate should have.
        complete: whether all candidates of the row are here, with all runs that were asked for.
    """

    row: str
    column: str
    keys: Sequence[str]
    metric: str
    candidates: Mapping[str, Candidate]
    chosen: str | None
    asked: int
    complete: bool

    @property
    def runs(self) -> Mapping[tuple[str, ...], Run]:
        """The finished runs of the chosen settings, by seed."""
        return {} if self.chosen is None else self.candidates[self.chosen].runs

    def results(self, split: str) -> dict[tuple[str, ...], float]:
        """The chosen runs' metric on a split, by seed."""
        found = {seed: run.result(split, self.metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


def choose(results: Mapping[str, Sequence[tuple[float, float]]], by: str = "metric", lower: bool = False) -> str:
    """The candidate with the best mean validation score; of equal ones that with the lower mean validation loss.

    Args:
        results: by candidate, each run's validation metric and loss.
        by: "loss" if the loss is to choose.
        lower: whether the lower metric is the better one.
    """

    def rank(name: str) -> tuple[float, float, list[tuple[bool, float, str]]]:
        # Rounded: the means of the same shares in another order may differ in their last digit.
        metric, loss = (round(fmean(values), 12) for values in zip(*results[name], strict=True))
        return (loss if by == "loss" else metric if lower else -metric), loss, natural(name)

    return min(results, key=rank)


def make_cells(runs: Sequence[Run], layout: Layout) -> tuple[list[Cell], dict[Path, str]]:
    """All rows and columns in which there is a run.

    Returns:
        The cells, and why which runs are in none: they don't have the column's metric.

    Raises:
        LorachainsError: runs of one cell differ in a setting that is neither shown nor chosen, or what would have to
            choose between them is missing.
    """
    given = runs
    runs, metrics, left_out = _measured(given, layout)
    if given and not runs:
        raise LorachainsError(f"{next(iter(left_out))}: {next(iter(left_out.values()))}, nor has any other run: see "
                              "metrics.json for what there is")  # fmt: skip
    keys = layout.row_keys(runs)
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    options = defaultdict[str, set[str]](set)
    for run in runs:
        row = layout.row(run, keys[kind(run)])
        groups[row, layout.column(run)].append(run)
        options[row].add(layout.candidate(run))
    asked = layout.n_seeds or len({layout.seed(run) for run in runs})
    cells = []
    for (row, column), own in sorted(groups.items(), key=lambda item: [*map(natural, item[0])]):
        if column in metrics:
            if differing := layout.differing(own):
                raise LorachainsError(
                    f"the runs of {row}, {column} differ in {', '.join(differing)}: name it in rows or columns, in "
                    "select.over if validation is to choose it, or in ignore"
                )
            cells.append(make_cell(row, column, keys[kind(own[0])], metrics[column], own, layout, asked, options[row]))
    return cells, left_out


def make_cell(
    row: str, column: str, keys: Sequence[str], metric: str, runs: Sequence[Run], layout: Layout, asked: int,
    options: Collection[str],
) -> Cell:  # fmt: skip
    """The cell of these runs, which differ in seeds and in what validation chooses alone.

    Args:
        asked: so many runs each candidate should have.
        options: the candidates that should be there.

    Raises:
        LorachainsError: what would have to choose between them is missing.
    """
    candidates, chosen = _candidates(runs, metric, layout, f"{row}, {column}")
    whole = all(name in candidates and len(candidates[name].runs) >= asked for name in options)
    return Cell(row, column, keys, metric, candidates, chosen, asked, whole)


def _measured(runs: Sequence[Run], layout: Layout) -> tuple[list[Run], dict[str, str], dict[Path, str]]:
    """Each column's metric, that which is asked for or that which most of its runs give first, and who has it."""
    first = defaultdict[str, Counter[str]](Counter)
    for run in runs:
        if run.metrics and (name := layout.metric or run.metric()):
            first[layout.column(run)][name] += 1
    metrics = {column: names.most_common(1)[0][0] for column, names in first.items()}
    left_out = dict[Path, str]()
    for run in runs:
        metric = metrics.get(layout.column(run), layout.metric or "…")
        if run.metrics and run.result("test", metric) is None:
            left_out[run.path] = f"metrics.json has no test/{run.part}{metric}"
    return [run for run in runs if run.path not in left_out], metrics, left_out


def _candidates(
    runs: Sequence[Run], metric: str, layout: Layout, where: str
) -> tuple[dict[str, Candidate], str | None]:
    """One cell's candidates, and the one that validation chooses."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: natural(layout.candidate(run))):
        groups[layout.candidate(run)].append(run)
    finished = {name: [run for run in own if run.metrics] for name, own in groups.items()}
    finished = {name: own for name, own in finished.items() if own}
    by = _criterion([run for own in finished.values() for run in own], metric, layout.by)
    found = {run.path: _validation(run, by) for own in finished.values() for run in own}
    results = {name: [pair for run in own if (pair := found[run.path])] for name, own in finished.items()}
    unknown = [path for path, pair in found.items() if pair is None]
    if unknown and len(finished) > 1:
        raise LorachainsError(
            f"{unknown[0]}: metrics.json has no val/{by} and val/loss, by which to choose in {where}: make rows of "
            "what is to be chosen"
        )
    chosen = choose(results, layout.by, not is_share(by)) if len(finished) > 1 else next(iter(finished), None)
    return {name: _candidate(own, results.get(name, []), layout) for name, own in groups.items()}, chosen


def _candidate(runs: Sequence[Run], results: Sequence[tuple[float, float]], layout: Layout) -> Candidate:
    finished = {layout.seed(run): run for run in runs if run.metrics}
    score = fmean(pair[layout.by == "loss"] for pair in results) if results else None
    return Candidate(finished, len(runs) - len(finished), score)


def _criterion(runs: Sequence[Run], metric: str, by: str) -> str:
    """The validation metric that chooses; where a cell shows what isn't validated, the one that selects its task."""
    if by != "metric":
        return by.removeprefix("val/")
    if any(run.result("val", metric) is not None for run in runs) or not runs:
        return metric
    return runs[0].metric() or metric


def _validation(run: Run, by: str) -> tuple[float, float] | None:
    """What chooses, and the loss that decides between equals."""
    loss = run.validation_loss
    value = loss if by == "loss" else run.result("val", by)
    return None if value is None or loss is None else (value, loss)
