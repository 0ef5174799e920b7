"""Active knowledge distillation (ActiveKD, arXiv 2506.00910), a line a step.

    python jobs/active_round.py CONFIG.yaml [--set key.sub=value ...]
    python jobs/active_round.py --preset demo
    ray job submit --working-dir . -- python jobs/active_round.py CONFIG.yaml

Run it again to go on: what is done is skipped. With labels from people it ends where they are needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from raykd import cli
from raykd.config import Config


def run(config: Config) -> Sequence[Mapping[str, Any]]:
    """A whole campaign, from wherever it stands; the figures of its rounds."""
    from raykd.stages.campaign import open_campaign
    from raykd.stages.encode import encode
    from raykd.stages.evaluate import measure
    from raykd.stages.label import ask, gather, settle
    from raykd.stages.mix import mix
    from raykd.stages.pool import list_pool
    from raykd.stages.predict import predict
    from raykd.stages.report import print_summary, write_report
    from raykd.stages.select import select
    from raykd.stages.teacher import refit, teach
    from raykd.stages.train import train
    from raykd.store.outputs import Round

    with open_campaign(config) as campaign:
        pool = list_pool(campaign)
        encoded = encode(campaign, pool)
        teacher = first = teach(campaign, pool, encoded)
        before = None
        for number in campaign.rounds:
            picks = select(campaign, number, pool, encoded, teacher, before)
            ask(campaign, number, pool, teacher, picks, before)
            gather(campaign, number, pool, picks)
            write_report(campaign, pool, encoded, teacher)
            labels = settle(campaign, number, pool, picks)
            teacher = refit(campaign, number, pool, encoded, first, labels)
            trained = train(campaign, number, pool, encoded, teacher, labels)
            predictions = predict(campaign, number, pool, encoded, trained)
            deployed = mix(campaign, number, pool, labels, trained, predictions)
            done = Round(number, picks, labels, trained, predictions, deployed)
            measure(campaign, pool, encoded, teacher, done, before)
            before = done
        write_report(campaign, pool, encoded, teacher)
        return print_summary(campaign)


main = cli.campaign_job(run, __doc__)

if __name__ == "__main__":
    main()
