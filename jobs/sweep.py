"""Which settings? Trainings on one round's labels of a campaign, by Ray Tune; the best as a config for the main job.

    python jobs/sweep.py RUN --search student.learning_rate=loguniform:1e-4,1e-2 student.loss_ce_weight=0.3,0.5,0.7
    python jobs/sweep.py RUN --search mixture.temperature=0.5,1,2 --sampler grid --out sweeps/mixing

RUN is the storage_path of a campaign with a round's labels; it is only looked at. Every point is a training as a round
makes it, on the same labels, judged on the validation split, or without one on the audited images that may choose;
never on test. The campaign as it is is one of the points. Killed, it goes on: a point that is done has its file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raykd import cli

if TYPE_CHECKING:
    from raykd.store.place import Place
    from raykd.sweeps import Sweep


def run(source: Place, sweep: Sweep, number: int | None, out: Place, asha: bool, changes: Sequence[str]) -> list[Any]:
    """A whole sweep, from wherever it stands; its trials, best first."""
    from raykd.config import load
    from raykd.errors import UserError
    from raykd.report.sweep_words import as_csv, best_first, best_yaml, luck, parallel_png, printed
    from raykd.stages.campaign import Campaign, read_history
    from raykd.stages.progress import Progress
    from raykd.stages.session import Session
    from raykd.stages.sweep import prepare, read_trials, run_trials
    from raykd.store.lock import only_job
    from raykd.sweeps import check_same_sweep, config_of, corners

    history = read_history(source)
    if not history:
        raise UserError(f"{source} holds no campaign; give the storage_path of one that has labels of a round")
    config = load(history[-1]["config"] | {"storage_path": source.uri}, changes)
    for point in [*corners(sweep), *(sweep.points() if sweep.sampler != "optuna" else [])]:
        config_of(config, point)
    progress = Progress(config.progress)
    with Session(config.local_cpus, config.stall_s, progress) as session, only_job(out):
        campaign = Campaign(config=config, place=source, progress=progress, session=session)
        with only_job(source):
            prepared = prepare(campaign, number)
        check_same_sweep(
            out, {**sweep.identity(), "campaign": source.uri, "round": prepared.number, "set": list(changes)}
        )
        judged = f"{prepared.num_judged} {prepared.which} images"
        progress.say("sweep", f"labels of round {prepared.number}, judged by {sweep.objective} on {judged}")
        run_trials(campaign, prepared, sweep, out, asha)
        rows = read_trials(out)
    (out / "trials.csv").write_bytes(as_csv(rows, sweep).encode())
    (out / "best.yaml").write_bytes(best_yaml(config, rows, sweep, prepared.number, judged).encode())
    if (png := parallel_png(rows, sweep)) is not None:
        (out / "parallel.png").write_bytes(png)
    print(f"\n{printed(rows, sweep)}\n\n{luck(rows, sweep.objective)}\nbest config: {out / 'best.yaml'}", flush=True)
    return best_first(rows, sweep.objective)


def main(argv: Sequence[str] | None = None) -> list[Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", metavar="RUN", help="storage_path of a campaign")
    parser.add_argument(
        "--search", nargs="+", action="extend", default=[], metavar="FIELD=VALUES",
        help="field=a,b,c or field=uniform:low,high, loguniform:low,high, int:low,high",
    )  # fmt: skip
    parser.add_argument("--round", type=int, help="whose labels are learned from; left out: the last that is done")
    parser.add_argument("--sampler", default="random", help="grid, random or optuna (default: random)")
    parser.add_argument("--trials", type=int, default=20, help="points of random and optuna (default: 20)")
    parser.add_argument("--repeats", type=int, default=1, help="trainings of each point, with other draws (default: 1)")
    parser.add_argument("--asha", action="store_true", help="end a point before its last repeat where others lead")
    parser.add_argument("--objective", default="accuracy", help="accuracy, log_loss or calibration (default: accuracy)")
    parser.add_argument("--out", metavar="FOLDER", help="where the sweep lies; left out: RUN, with -sweep behind it")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="of all points")
    given = cli.parse_known(parser, argv)
    with cli.user_errors():
        from raykd.store.place import Place
        from raykd.sweeps import Sweep, check_sweep, read_space

        space = read_space(given.search)
        sweep = Sweep(space, given.sampler, given.trials, given.repeats, given.objective)
        check_sweep(sweep)
        source = Place.of(given.campaign)
        out = Place.of(given.out or f"{str(given.campaign).rstrip('/')}-sweep")
        return run(source, sweep, given.round, out, given.asha, given.set)


if __name__ == "__main__":
    main()
