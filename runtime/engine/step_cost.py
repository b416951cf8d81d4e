"""Whose the seconds of a step were: a model of a step's time, fitted as steps go by, divides each among its requests.

    t_step = a * prefill tokens not cached + b * decode rows + c

(the additive split of an engine's step log; a, b, c in seconds, none negative). A request's share of a step is in proportion
to its a and b terms and its part, by tokens, of c; the shares are scaled to the step's measured time, so that they add up to it
exactly whatever the model thinks, and a step of one request is all its own. Of each share the part that computed the prompt is
told apart from the rest, so that what goes in and what comes out have prices of their own that add up.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import combinations

import numpy as np

DECAY = 0.999  # of the weight of earlier steps with each new one: about the last thousand count
REFIT_EVERY = 64  # steps
MIN_STEPS = 32  # before that, tokens count alike


@dataclass(frozen=True, slots=True)
class Load:
    """One request's part of a step: tokens of prompts and guesses computed, and tokens sampled that follow others; `guessed` is
    how many of the first are guesses, whose time is the answer's."""

    request_id: str
    prefill: int
    decode: int
    guessed: int = 0


class StepCost:
    """Bounded memory: the normal equations of the fit (4 x 4 numbers), and two numbers for each live request."""

    def __init__(self) -> None:
        self._moments = np.zeros((4, 4))  # of (prefill, decode, 1, seconds), decayed
        self._steps = 0
        self.coefficients = (1.0, 1.0, 0.0)  # a, b, c; only their ratio counts until they are fitted
        self._seconds: dict[str, tuple[float, float]] = {}  # all, and for the prompt
        self.total_s = 0.0  # of all steps

    def add(self, loads: Seq[Load], seconds: float) -> None:
        """A step took `seconds` for these. Learns from it and divides it."""
        if not loads:
            return
        self.total_s += seconds
        prefill, decode = sum(load.prefill for load in loads), sum(load.decode for load in loads)
        self._learn(prefill, decode, seconds)
        a, b, c = self.coefficients
        each_c = c / (prefill + decode)
        weights = [(a + each_c) * load.prefill + (b + each_c) * load.decode for load in loads]
        scale = sum(weights)
        for load, weight in zip(loads, weights, strict=True):
            part = weight / scale if scale else (load.prefill + load.decode) / (prefill + decode)
            own = (a + each_c) * (load.prefill - load.guessed) / weight if weight else float(load.decode == 0)
            spent, prompt = self._seconds.get(load.request_id, (0.0, 0.0))
            self._seconds[load.request_id] = spent + seconds * part, prompt + seconds * part * own

    def end(self, request_id: str) -> tuple[float, float]:
        """The request's device-seconds in all, and those of them that computed its prompt; it is forgotten. Zeros for one that
        never was in a step."""
        return self._seconds.pop(request_id, (0.0, 0.0))

    def _learn(self, prefill: int, decode: int, seconds: float) -> None:
        x = np.array((prefill, decode, 1.0, seconds))
        self._moments *= DECAY
        self._moments += np.outer(x, x)
        self._steps += 1
        if self._steps >= MIN_STEPS and self._steps % REFIT_EVERY == MIN_STEPS % REFIT_EVERY:
            self.coefficients = _nonnegative(self._moments[:3, :3], self._moments[:3, 3])


def _nonnegative(gram: np.ndarray, target: np.ndarray) -> tuple[float, float, float]:
    """The x >= 0 that makes x'Gx - 2x't least: with three unknowns the seven sets of those above zero are simply tried
    (the optimum solves the plain equations of its own set; Lawson and Hanson, Solving Least Squares Problems, chapter 23)."""
    best, least = np.zeros(3), 0.0
    for n in (1, 2, 3):
        for chosen in combinations(range(3), n):
            rows = list(chosen)
            x = np.zeros(3)
            x[rows] = np.linalg.lstsq(gram[np.ix_(rows, rows)], target[rows], rcond=None)[0]
            loss = float(x @ gram @ x - 2 * x @ target)
            if (x >= 0).all() and loss < least:
                best, least = x, loss
    return float(best[0]), float(best[1]), float(best[2])
