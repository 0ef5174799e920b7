"""Active knowledge distillation (ActiveKD, arXiv 2506.00910), a line a step.

    python jobs/active_round.py CONFIG.yaml [--set key.sub=value ...]
    python jobs/active_round.py --preset demo
    ray job submit --working-dir . -- python jobs/active_round.py CONFIG.yaml

Run it again to go on: what is done is skipped. With labels from people it ends where they are needed.
"""

from raykd import cli
from raykd.config import Config


def run(config: Config) -> None:
    """A whole campaign, from wherever it stands."""
    from raykd.stages import evaluate, label, mix, pool, predict, report, select, teacher, train
    from raykd.stages.campaign import Round, open_campaign

    with open_campaign(config) as campaign:
        images = pool.build(campaign)
        scores = teacher.score(campaign, images)
        before = None
        for round in campaign.rounds:
            picks = select.pick(campaign, round, images, scores, before)
            label.ask(campaign, round, images, scores, picks, before)
            report.write(campaign, images, scores)
            labels = label.collect(campaign, round, images, picks)
            trained = train.fit(campaign, round, images, scores, labels)
            predictions = predict.score(campaign, round, images, scores, trained)
            student = mix.mix(campaign, round, images, trained, predictions)
            before = Round(picks, labels, trained, predictions, student)
            evaluate.measure(campaign, round, images, scores, before)
        report.write(campaign, images, scores)
        report.summary(campaign)


main = cli.campaign_job(run, __doc__)

if __name__ == "__main__":
    main()
