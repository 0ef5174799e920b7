"""What a sweep has found: a table, a CSV, the best config as YAML, and a parallel-coordinates plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from raykd.algo.mixture_search import is_real_gain, is_real_saving
from raykd.config import Config
from raykd.report.words import counted
from raykd.sweeps import LENGTHS, SMALLER_IS_BETTER, Sweep, config_of


def best_first(rows: Sequence[Mapping[str, Any]], objective: str) -> list[Mapping[str, Any]]:
    """Of equals the campaign as it is, then as they were."""
    sign = 1 if objective in SMALLER_IS_BETTER else -1
    return sorted(rows, key=lambda row: (sign * row["objective"], bool(row["point"])))


def luck(rows: Sequence[Mapping[str, Any]], objective: str) -> str:
    """Whether the best is better than the campaign as it is by more than a standard error, on the same images."""
    best = best_first(rows, objective)[0]
    base = next((row for row in rows if not row["point"]), None)
    if base is None:
        return "the campaign as it is has not been tried yet"
    if best is base:
        return "the campaign as it is is the best of them"
    if objective == "calibration":
        return "how much of its lead is luck, nobody has measured"
    key = "right" if objective == "accuracy" else "losses"
    ours_N, theirs_N = (np.mean([each[key] for each in row["repeats"]], axis=0) for row in (best, base))
    if key == "losses":
        real, gain = is_real_saving(ours_N, theirs_N)
    elif len(best["repeats"]) == 1:
        real, gain = is_real_gain(ours_N.astype(bool), theirs_N.astype(bool))
    else:
        real, gain = is_real_saving(-ours_N, -theirs_N)
    if real:
        return f"the best gains {gain} over the campaign as it is; the best of {len(rows)} is partly luck"
    return f"the best gains {gain} over the campaign as it is: within a standard error, so nothing is shown"


def printed(rows: Sequence[Mapping[str, Any]], sweep: Sweep, most: int = 20) -> str:
    """The best points, a line each."""
    names = list(sweep.space)
    table = [(sweep.objective, *names, "ce_weight", "temperature", "seconds")]
    for row in best_first(rows, sweep.objective)[:most]:
        first = row["repeats"][0]
        values = [as_shown(row["point"][name]) if row["point"] else "as it is" for name in names]
        numbers = (f"{first['ce_weight']:g}", f"{first['temperature']:g}", f"{first['seconds']:.1f}")
        table.append((f"{row['objective']:.4f}", *values, *numbers))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def as_shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_csv(rows: Sequence[Mapping[str, Any]], sweep: Sweep) -> str:
    """A row a point, best first; of repeats the means."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    figures = ("accuracy", "log_loss", "calibration", "ce_weight", "temperature", "seconds")
    writer.writerow([*sweep.space, "objective", "repeats", *figures])
    for row in best_first(rows, sweep.objective):
        means = [float(np.mean([each[name] for each in row["repeats"]])) for name in figures]
        values = [row["point"].get(name, "") for name in sweep.space]
        writer.writerow([*values, row["objective"], len(row["repeats"]), *means])
    return sink.getvalue()


def best_yaml(base: Config, rows: Sequence[Mapping[str, Any]], sweep: Sweep, number: int, judged: str) -> str:
    """The campaign's config with the best values, as the main job takes it."""
    best = best_first(rows, sweep.objective)[0]
    values = config_of(base, best["point"]).model_dump(mode="json", exclude_unset=False)
    for name in LENGTHS:
        if values["student"][name.partition(".")[2]] is None:
            del values["student"][name.partition(".")[2]]
    head = [
        f"# The best of {counted(len(rows), 'point')} on the labels of round {number} of {base.storage_path}:",
        f"# {sweep.objective} {best['objective']:.4f} on {judged}; {luck(rows, sweep.objective)}.",
        *(f"#   {name}: {as_shown(value)}" for name, value in best["point"].items()),
        "# It is that campaign's config otherwise, its storage_path too: there it counts from the next round on.",
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def parallel_png(rows: Sequence[Mapping[str, Any]], sweep: Sweep) -> bytes | None:
    """Parallel coordinates: a line a point, over its fields, colored by the objective; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tried = [row for row in best_first(rows, sweep.objective) if row["point"]][::-1]
    if not tried:
        return None
    names = [*sweep.space, sweep.objective]
    columns = [[row["point"][name] for row in tried] for name in sweep.space]
    columns.append([row["objective"] for row in tried])
    figure, axis = plt.subplots(figsize=(2.2 + 1.7 * len(names), 4), constrained_layout=True)
    places = [scaled(values) for values in columns]
    colors = plt.get_cmap("viridis")(np.linspace(0, 1, len(tried)))
    for line, color in zip(zip(*places, strict=True), colors, strict=True):
        axis.plot(range(len(names)), line, color=color, alpha=0.8)
    for x, (values, at) in enumerate(zip(columns, places, strict=True)):
        axis.axvline(x, color="#c4c8cc", linewidth=1, zorder=0)
        ticks = dict(zip(at, map(as_shown, values), strict=True))
        ends = sorted(ticks)
        for place in ends if len(ends) <= 6 else (ends[0], ends[-1]):
            axis.annotate(ticks[place], (x, place), xytext=(4, 0), textcoords="offset points", fontsize=8)
    axis.set_xticks(range(len(names)), [name.rpartition(".")[2] for name in names])
    axis.set_yticks([])
    for side in ("top", "left", "right", "bottom"):
        axis.spines[side].set_visible(False)
    axis.set_title("the yellower a line, the better", fontsize=9)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130)
    plt.close(figure)
    return sink.getvalue()


def scaled(values: Sequence[Any]) -> list[float]:
    """Places from 0 to 1: of numbers by size (of many sizes by logarithm), of words in their order."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        words = sorted({str(value) for value in values})
        return [words.index(str(value)) / max(len(words) - 1, 1) for value in values]
    numbers = np.array(values, np.float64)
    if numbers.min() > 0 and numbers.max() / numbers.min() > 30:
        numbers = np.log(numbers)
    spread = np.ptp(numbers)
    return ((numbers - numbers.min()) / spread).tolist() if spread else [0.5] * len(numbers)
