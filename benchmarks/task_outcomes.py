"""What a task set's runs come to: accepted share, dollars for an accepted task, and pairs of candidates. Pure.

Intervals are over tasks (bootstrap, 2,000 draws, 95%), all repetitions of a task being one draw: another repetition is no new
task. Dollars for an accepted task are those of all tasks over the accepted ones, failures included (Cost-of-Pass).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from .figures import Figure
from .slo import wilson
from .stats import Slo, Summary, summarise
from .task_runs import Candidate, Pass, TaskRun

DRAWS = 2000
MIN_TASKS = 10  # fewer tasks say nothing of the next ones


@dataclass(frozen=True, slots=True)
class Spread:
    """A 95% interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One candidate. What is None is not known."""

    model: str
    policy: str
    tasks: int
    repeats: int
    cache: str  # "cold": each pass had a server of its own
    accepted: int  # of tasks x repeats
    accepted_share: float
    accepted_low: float
    accepted_high: float
    usd: float | None  # of all passes
    usd_why: str  # whose word it is, or why there is none
    usd_per_accepted: float | None
    usd_per_accepted_spread: Spread | None
    joules: float | None
    joules_known: str  # measured | declared | assumed | none
    joules_per_accepted: float | None
    slo_met: float | None
    e2e_s: Summary
    attempts: int
    local: int
    errors: dict[str, int]
    flags: list[str]

    @property
    def name(self) -> str:
        return f"{self.model} @ {self.policy}"


@dataclass(frozen=True, slots=True)
class Paired:
    """B minus A over the same tasks: mean and 95%."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Swap:
    """What using B instead of A changes for a task; None where it is not known of every task."""

    a: str
    b: str
    tasks: int
    accepted: Paired | None
    usd: Paired | None
    e2e_s: Paired | None


def outcome(candidate: Candidate, passes: Sequence[Pass], slo: Slo | None, known: str, profile: str) -> Outcome:
    """`known` and `profile`: how well the hardware profile is known, and its name; "none" and "" without one."""
    runs = [run for one in passes for run in one.runs]
    tasks = len(passes[0].runs)
    accepted = sum(run.accepted for run in runs)
    usd, joules = total(runs, lambda run: run.usd), total(runs, lambda run: run.joules)
    low, high = wilson(round(accepted / len(passes)), tasks)
    unpriced = sum(run.usd is None for run in runs)
    flags = list(dict.fromkeys(flag for one in passes for flag in one.seen.flags()))
    if tasks < MIN_TASKS:
        flags.append(f"{tasks} tasks are too few for an interval")
    return Outcome(
        model=candidate.model,
        policy=candidate.policy,
        tasks=tasks,
        repeats=len(passes),
        cache="cold",
        accepted=accepted,
        accepted_share=accepted / len(runs),
        accepted_low=low,
        accepted_high=high,
        usd=usd,
        usd_why=f"not known: {unpriced} of {len(runs)} requests have no price" if usd is None else _why(runs, known, profile),
        usd_per_accepted=usd / accepted if usd is not None and accepted else None,
        usd_per_accepted_spread=_ratio_spread(runs) if usd is not None and tasks >= MIN_TASKS else None,
        joules=joules,
        joules_known=known if joules is not None else "none",
        joules_per_accepted=joules / accepted if joules is not None and accepted else None,
        slo_met=fmean(run.error is None and slo.met(None, None, run.e2e_s) for run in runs) if slo else None,
        e2e_s=summarise(run.e2e_s for run in runs if run.error is None),
        attempts=sum(run.attempts for run in runs),
        local=sum(run.local for run in runs),
        errors=dict(Counter(run.error for run in runs if run.error)),
        flags=flags,
    )


def _why(runs: Sequence[TaskRun], known: str, profile: str) -> str:
    parts = [f"the machine's time: {profile}, {known}"] if any(run.local for run in runs) else []
    parts += ["suppliers' list prices"] if any(run.attempts > run.local for run in runs) else []
    return "; ".join(parts)


def total(runs: Sequence[TaskRun], of: Callable[[TaskRun], float | None]) -> float | None:
    """None where one is not known."""
    known = [value for run in runs if (value := of(run)) is not None]
    return sum(known) if len(known) == len(runs) else None


def by_task(runs: Sequence[TaskRun], of: Callable[[TaskRun], float | None]) -> dict[str, float]:
    """Each task's mean over its repetitions; tasks of which one value is not known are left out."""
    values: dict[str, list[float | None]] = {}
    for run in runs:
        values.setdefault(run.task, []).append(of(run))
    return {task: fmean(v for v in found if v is not None) for task, found in values.items() if None not in found}


def _draws(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, n, (DRAWS, n))


def _ratio_spread(runs: Sequence[TaskRun]) -> Spread | None:
    """Of dollars over accepted; None where there is no upper end: too many draws have no accepted task."""
    usd, accepted = by_task(runs, lambda run: run.usd), by_task(runs, lambda run: float(run.accepted))
    tasks = list(usd)
    rows = _draws(len(tasks))
    spent = np.array([usd[task] for task in tasks])[rows].sum(axis=1)
    done = np.array([accepted[task] for task in tasks])[rows].sum(axis=1)
    each = np.divide(spent, done, out=np.full(DRAWS, np.inf), where=done > 0)
    low, high = np.percentile(each, [2.5, 97.5], method="nearest")
    return Spread(float(low), float(high)) if np.isfinite(high) else None


def paired(a: Sequence[TaskRun], b: Sequence[TaskRun], of: Callable[[TaskRun], float | None]) -> Paired | None:
    """None where the two have not the same tasks with known values, or too few."""
    first, second = by_task(a, of), by_task(b, of)
    tasks = [task for task in first if task in second]
    if len(tasks) < max(MIN_TASKS, len({run.task for run in a}), len({run.task for run in b})):
        return None
    one, other = (np.array([values[task] for task in tasks]) for values in (first, second))
    changes = other - one
    low, high = np.percentile(changes[_draws(len(tasks))].mean(axis=1), [2.5, 97.5])
    return Paired(float(one.mean()), float(other.mean()), float(changes.mean()), float(low), float(high), len(tasks))


def swap(a: str, b: str, runs_a: Sequence[TaskRun], runs_b: Sequence[TaskRun]) -> Swap:
    """`a` and `b` are the candidates' names."""
    return Swap(
        a,
        b,
        len({run.task for run in runs_a}),
        paired(runs_a, runs_b, lambda run: float(run.accepted)),
        paired(runs_a, runs_b, lambda run: run.usd),
        paired(runs_a, runs_b, lambda run: run.e2e_s),
    )


def frontier(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that no other beats both in dollars for an accepted task and in accepted share, cheapest first."""
    priced = [(one.usd_per_accepted, one) for one in outcomes if one.usd_per_accepted is not None]
    kept: list[Outcome] = []
    for _, one in sorted(priced, key=lambda pair: (pair[0], -pair[1].accepted_share)):
        if not kept or one.accepted_share > kept[-1].accepted_share:
            kept.append(one)
    return kept


def figures(candidate: Candidate, passes: Sequence[Pass]) -> list[Figure]:
    """A value for each pass."""
    runs = [one.runs for one in passes]
    found = [Figure(f"{candidate.name}: accepted", "share", "more", tuple(fmean(r.accepted for r in one) for one in runs))]
    spent = [(total(one, lambda run: run.usd), sum(run.accepted for run in one)) for one in runs]
    each = tuple(usd / done for usd, done in spent if usd is not None and done)
    if len(each) == len(runs):
        found.append(Figure(f"{candidate.name}: an accepted task", "USD", "less", each))
    middle = tuple(value for one in runs if (value := summarise(r.e2e_s for r in one if not r.error).p50) is not None)
    return found + ([Figure(f"{candidate.name}: end to end p50", "s", "less", middle)] if middle else [])
