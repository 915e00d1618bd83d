"""Problems over matrices on which COLA's Theorem 4.1 can be held against numbers (§4).

A problem holds several runs: run i has data and minibatches of its own, drawn from `seeds[i]`, and is a row of every
tensor. All is float64. `K` is the trace-norm ball `{W : ‖W‖_* ≤ radius}`. Both losses are means over `samples` terms,
are never negative, and have a teacher of trace norm `radius`, on the border of `K`.

Both problems are convex, which the theorem doesn't need.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lorachains.errors import LorachainsError

DATA, MINIBATCHES = 0, 1


class Problem(ABC):
    """`L(W) = (1/n) Σ_i ℓ_i(W)`, one loss a run.

    Args:
        rows, cols: the size of `W`.
        rank: the teacher's.
        radius: of the trace-norm ball.
        seeds: one for each run. Runs of the same seed have the same data and the same minibatches.

    Attributes:
        samples: n, the number of terms.
        smoothness: `(runs,)`, a β such that `‖∇L(W) − ∇L(W')‖_F ≤ β ‖W − W'‖_F` everywhere.
        ceiling: `(runs,)`, an M such that `0 ≤ L ≤ M` on `K`: the theorem's "bounded in K by M".
        variance: `(runs,)`, a σ² such that `E‖∇ℓ_i(W) − ∇L(W)‖²_F ≤ σ²` on `K` for a random term; the mean of b
            independent terms has at most `σ² / b`.

    Raises:
        LorachainsError: a size below 1, or a radius that is not positive.
    """

    samples: int
    smoothness: Float[Tensor, " runs"]
    ceiling: Float[Tensor, " runs"]
    variance: Float[Tensor, " runs"]

    def __init__(self, *, rows: int, cols: int, rank: int, radius: int | float, seeds: Sequence[int]):
        for key, value in (("rows", rows), ("cols", cols), ("rank", rank)):
            if type(value) is not int or value < 1:
                raise LorachainsError(f"problem.{key} is {value!r}: give a whole number, at least 1")
        if not isinstance(radius, int | float) or not 0 < radius < math.inf:
            raise LorachainsError(f"problem.radius is {radius!r}: give a finite number above 0")
        self.rows, self.cols, self.rank, self.radius, self.seeds = rows, cols, rank, float(radius), list(seeds)

    @property
    def runs(self) -> int:
        """How many there are."""
        return len(self.seeds)

    @property
    def diameter(self) -> float:
        """D of the ball in the Frobenius norm, `2 · radius`.

        `‖V − W‖_F ≤ ‖V − W‖_* ≤ 2 · radius`, and `±radius · u vᵀ` of unit vectors u, v are as far apart.
        """
        return 2 * self.radius

    def zeros(self) -> Float[Tensor, "runs rows cols"]:
        """`W = 0` for each run: where a chain of LoRAs begins, and inside any ball."""
        return torch.zeros(self.runs, self.rows, self.cols, dtype=torch.float64)

    def minibatches(self, size: int | None) -> Iterator[Int[Tensor, "runs size"] | None]:
        """Endlessly, `size` terms for each run, drawn uniformly with replacement; `None` (all terms) without a size."""
        generators = [_generator(seed, MINIBATCHES) for seed in self.seeds]
        while True:
            if size is None:
                yield None
            else:
                yield torch.stack([torch.randint(self.samples, (size,), generator=each) for each in generators])

    @abstractmethod
    def loss(self, w: Float[Tensor, "runs rows cols"]) -> Float[Tensor, " runs"]:
        """`L(W)` of each run."""

    @abstractmethod
    def test_loss(self, w: Float[Tensor, "runs rows cols"]) -> Float[Tensor, " runs"]:
        """How far `W` is from the teacher, on data that `loss` has not seen."""

    @abstractmethod
    def gradient(
        self, w: Float[Tensor, "runs rows cols"], index: Int[Tensor, "runs size"] | None = None
    ) -> Float[Tensor, "runs rows cols"]:
        """`∇L(W)` of each run, or the mean of `∇ℓ_i(W)` over the terms in `index`, which is unbiased."""

    def _teacher(self, generator: torch.Generator) -> Float[Tensor, "rows cols"]:
        left = torch.randn(self.rows, self.rank, generator=generator, dtype=torch.float64)
        product = left @ torch.randn(self.rank, self.cols, generator=generator, dtype=torch.float64)
        return product * (self.radius / torch.linalg.matrix_norm(product, "nuc"))


class Completion(Problem):
    """Matrix completion: `L(W) = 1/(2n) Σ_{(i,j) ∈ Ω} (W_ij − Y_ij)²`, with Y a low-rank matrix plus noise.

    The n entries in Ω are distinct, so the Hessian is diagonal with entries 1/n on Ω and 0 elsewhere: β = 1/n, exactly.

    M: `Σ_Ω (W_ij − Y_ij)² ≤ (‖W‖_F + ‖Y_Ω‖)²` and `‖W‖_F ≤ ‖W‖_* ≤ radius`: `M = (radius + ‖Y_Ω‖)² / 2n`.

    σ²: a term's gradient is its residual r_i at one entry, so `E‖∇ℓ_i‖² = (1/n) Σ r_i² = 2L`, while
    `‖∇L‖² = (1/n²) Σ r_i² = 2L/n`. The variance is `2 (1 − 1/n) L(W)`, at most `2 (1 − 1/n) M` on `K`.

    Args:
        observed: the share of entries in Ω.
        noise: the standard deviation of the noise on each.
        others: see `Problem`.

    Raises:
        LorachainsError: a share outside (0, 1], or a negative noise.
    """

    def __init__(self, *, observed: int | float, noise: int | float, **common: object):
        super().__init__(**common)  # type: ignore[arg-type]
        if not isinstance(observed, int | float) or not 0 < observed <= 1:
            raise LorachainsError(f"problem.observed is {observed!r}: give a share above 0 and at most 1")
        if not isinstance(noise, int | float) or not 0 <= noise < math.inf:
            raise LorachainsError(f"problem.noise is {noise!r}: give a standard deviation, 0 or more")
        self.samples = max(1, round(observed * self.rows * self.cols))
        drawn = [self._draw(_generator(seed, DATA), noise) for seed in self.seeds]
        self.teachers, self.entries, self.values = (torch.stack(each) for each in zip(*drawn, strict=True))
        self.smoothness = torch.full((self.runs,), 1 / self.samples, dtype=torch.float64)
        self.ceiling = (self.radius + self.values.norm(dim=1)).square() / (2 * self.samples)
        self.variance = 2 * (1 - 1 / self.samples) * self.ceiling

    def loss(self, w: Float[Tensor, "runs rows cols"]) -> Float[Tensor, " runs"]:
        return (w.flatten(1).gather(1, self.entries) - self.values).square().mean(1) / 2

    def test_loss(self, w: Float[Tensor, "runs rows cols"]) -> Float[Tensor, " runs"]:
        """Half the mean squared distance to the teacher over all entries, noiseless."""
        return (w - self.teachers).flatten(1).square().mean(1) / 2

    def gradient(
        self, w: Float[Tensor, "runs rows cols"], index: Int[Tensor, "runs size"] | None = None
    ) -> Float[Tensor, "runs rows cols"]:
        entries, values = self.entries, self.values
        if index is not None:
            entries, values = entries.gather(1, index), values.gather(1, index)
        residuals = w.flatten(1).gather(1, entries) - values
        flat = torch.zeros_like(w).flatten(1)
        return flat.scatter_add(1, entries, residuals / entries.shape[1]).view_as(w)

    def _draw(self, generator: torch.Generator, noise: int | float) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher, the places of the observed entries in it when flattened, and their values."""
        teacher = self._teacher(generator)
        entries = torch.randperm(teacher.numel(), generator=generator)[: self.samples]
        noises = noise * torch.randn(self.samples, generator=generator, dtype=torch.float64)
        return teacher, entries, teacher.flatten()[entries] + noises


class Logistic(Problem):
    """Multinomial logistic regression with a matrix of weights: `L(W) = (1/n) Σ_i −log softmax(W x_i)_{y_i}`, in nats.

    Inputs are Gaussian, a label is drawn from the softmax of the teacher's logits; `rows` are classes, `cols` features.

    β: the Hessian is `(1/n) Σ_i (diag(p_i) − p_i p_iᵀ) ⊗ x_i x_iᵀ`. The first factor is at most 1/2 (Gershgorin:
    `p_j (1 − p_j) + p_j Σ_{k≠j} p_k = 2 p_j (1 − p_j) ≤ 1/2`), so `β = ½ λ_max(XᵀX / n)` is enough.

    M: `−log softmax(z)_y ≤ log(rows) + max_j (z_j − z_y)`, and with `‖(e_j − e_y) xᵀ‖ = √2 ‖x‖` for the operator norm
    `z_j − z_y ≤ √2 ‖x‖ ‖W‖_*`: `M = log(rows) + √2 · radius · mean‖x_i‖`.

    σ²: a term's gradient is `(p_i − e_{y_i}) x_iᵀ` with `‖p − e_y‖² ≤ 2`, and a variance is at most the second moment:
    `σ² = 2 mean‖x_i‖²`.

    Args:
        samples: n.
        others: see `Problem`.

    Raises:
        LorachainsError: no sample.
    """

    def __init__(self, *, samples: int, **common: object):
        super().__init__(**common)  # type: ignore[arg-type]
        if type(samples) is not int or samples < 1:
            raise LorachainsError(f"problem.samples is {samples!r}: give a whole number, at least 1")
        self.samples = samples
        drawn = [self._draw(_generator(seed, DATA)) for seed in self.seeds]
        inputs, labels = (torch.stack(each) for each in zip(*drawn, strict=True))
        self.inputs, self.unseen_inputs = inputs.split(samples, 1)
        self.labels, self.unseen_labels = labels.split(samples, 1)
        lengths = self.inputs.norm(dim=2)
        self.smoothness = torch.linalg.matrix_norm(self.inputs, 2).square() / (2 * samples)
        self.ceiling = math.log(self.rows) + math.sqrt(2) * self.radius * lengths.mean(1)
        self.variance = 2 * lengths.square().mean(1)

    def loss(self, w: Float[Tensor, "runs rows cols"]) -> Float[Tensor, " runs"]:
        return _cross_entropy(w, self.inputs, self.labels)

    def test_loss(self, w: Float[Tensor, "runs rows cols"]) -> Float[Tensor, " runs"]:
        """The same over as many samples drawn afresh, in nats."""
        return _cross_entropy(w, self.unseen_inputs, self.unseen_labels)

    def gradient(
        self, w: Float[Tensor, "runs rows cols"], index: Int[Tensor, "runs size"] | None = None
    ) -> Float[Tensor, "runs rows cols"]:
        inputs, labels = self.inputs, self.labels
        if index is not None:
            inputs = inputs.gather(1, index.unsqueeze(2).expand(-1, -1, self.cols))
            labels = labels.gather(1, index)
        p = (inputs @ w.mT).softmax(2)
        errors = p.scatter_add(2, labels.unsqueeze(2), torch.full_like(p[..., :1], -1))
        return errors.mT @ inputs / labels.shape[1]

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The inputs and labels of the samples, seen and unseen."""
        teacher = self._teacher(generator)
        inputs = torch.randn(2 * self.samples, self.cols, generator=generator, dtype=torch.float64)
        labels = torch.multinomial((inputs @ teacher.T).softmax(1), 1, generator=generator).squeeze(1)
        return inputs, labels


def _cross_entropy(w: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    return -(inputs @ w.mT).log_softmax(2).gather(2, labels.unsqueeze(2)).flatten(1).mean(1)


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(2 * seed + stream)
