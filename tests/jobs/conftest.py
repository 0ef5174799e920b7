import pytest

from tests.jobs.campaigns import Reached


@pytest.fixture
def up_to_training(monkeypatch):
    """Ends a job where its training would begin; gives the round that it was of."""
    from raykd.stages import train

    def stop(campaign, number, *stages):
        raise Reached(number)

    monkeypatch.setattr(train, "train", stop)
