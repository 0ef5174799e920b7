"""Cells one after the other in one process, and what they share kept: the problem, and the first round of a seed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from raykd.config import Config
from raykd.errors import UserError
from raykd.simulation.cell import After, first_round_key, run_cell
from raykd.simulation.definition import GreedyConfig, OracleConfig, SetConfig
from raykd.simulation.greedy_oracle import run_greedy
from raykd.simulation.oracles import Answering, answering
from raykd.simulation.problem import Problem, read_problem, variant
from raykd.simulation.results import result_rows
from raykd.store.place import Place
from raykd.store.stage_folder import fingerprint


@dataclass(frozen=True)
class Variant:
    """A problem as a set has it. Small: it travels, the arrays don't.

    Args:
        problem: Folder of the whole problem (:func:`raykd.simulation.problem.write_problem`).
        name: Of the set.
        images: Which of the pool's images.
        split_seed: Of their draw.
        oracle: Who answers.
    """

    problem: Place
    name: str
    images: SetConfig
    split_seed: int
    oracle: OracleConfig

    def open(self) -> tuple[Problem, Answering]:
        """Read it. Raises UserError where set or oracle do not fit."""
        try:
            whole = variant(read_problem(self.problem), self.images, self.split_seed)
        except UserError as error:
            raise UserError(f"set {self.name!r}: {error}") from None
        return whole, answering(self.oracle, whole)


@dataclass(frozen=True)
class Cell:
    """One arm with one seed on one set.

    Args:
        variant: The images, and who answers.
        arm: Its name.
        config: With the cell's seed.
        num_rounds: How many.
        greedy: The upper bound's; None: it picks by its strategy.
        out: The file of its rows.
    """

    variant: Variant
    arm: str
    config: Config
    num_rounds: int
    greedy: GreedyConfig | None
    out: Place

    @property
    def words(self) -> str:
        return f"set {self.variant.name!r}, arm {self.arm!r}, seed {self.config.seed}"

    @property
    def shares(self) -> tuple[str, str, int]:
        """Cells that agree in this may share a first round."""
        return self.variant.problem.uri, self.variant.name, self.config.seed


class CellRunner:
    """Runs cells; the same class in a process of its own and inside a Ray actor.

    It keeps one problem, and the first rounds of one seed: cells come seed by seed.

    Args:
        share: Whether first rounds are shared; the figures are the same, but for ``seconds``.
    """

    def __init__(self, share: bool = True) -> None:
        self.share = share
        self._variant: tuple[Variant, Problem, Answering] | None = None
        self._firsts: dict[str, After] = {}
        self._seed: Any = None

    def run(self, cell: Cell) -> float:
        """Run a cell and write its rows, whole or not at all; what it took, in seconds.

        Raises:
            UserError: What :func:`raykd.simulation.cell.run_cell` refuses; names the cell.
        """
        started = time.perf_counter()
        if self._variant is None or self._variant[0] != cell.variant:
            self._variant = None  # the memory of one, not of two
            self._variant = (cell.variant, *cell.variant.open())
            self._seed = None
        _, problem, answers = self._variant
        if self._seed != cell.shares:
            self._firsts, self._seed = {}, cell.shares
        key = fingerprint(first_round_key(cell.config))
        first = self._firsts.get(key)

        def keep(after: After) -> None:
            if self.share and after.row["round"] == 0 and cell.greedy is None:
                self._firsts[key] = after

        oracle = answers.oracle(problem, cell.config.seed)
        try:
            if cell.greedy is None:
                rounds = run_cell(problem, cell.config, oracle, cell.num_rounds, first, keep)
            else:
                shared = first if cell.config.labels.start == "one_per_class" else None
                rounds = run_greedy(problem, cell.config, oracle, cell.num_rounds, cell.greedy.candidates, shared)
        except UserError as error:
            raise UserError(f"{cell.words}: {error}") from None
        rows = [after.row for after in rounds]
        cell.out.write_table(result_rows(cell.variant.name, cell.arm, cell.config.seed, rows))
        return time.perf_counter() - started
