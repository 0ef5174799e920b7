"""What the teacher says of augmented images is of the very pixels that are trained on, held against open_clip."""

import numpy as np
import open_clip
import pytest
import torch
from fakes import images_read
from PIL import Image

from raykd.models.training_data import AskedBatch


@pytest.fixture
def trainings(monkeypatch):
    """Data and targets of every training, and a look at some batch of it."""
    from raykd.stages import train_loop

    seen, train_student = [], train_loop.train_student

    def watched(model, data, targets, settings, *args, **more):
        num = len(data)
        asked = AskedBatch(np.arange(num), np.arange(num) * 7, len(targets.labels_L))
        batch = data.batch(asked)
        seen.append((data, targets, asked, batch, targets.teacher(asked, batch).numpy()))
        return train_student(model, data, targets, settings, *args, **more)

    monkeypatch.setattr(train_loop, "train_student", watched)
    return seen


@pytest.fixture(scope="module")
def say(teacher_folder):
    """Zero-shot logits of PIL images by a plain open_clip loop, each row's largest 0."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{teacher_folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{teacher_folder}")

    def logits(images):
        with torch.inference_mode():
            texts = model.encode_text(tokenizer([f"a photo of a {name}." for name in ("blue", "green", "red")]))
            texts = torch.nn.functional.normalize(texts, dim=1)
            pixels = torch.stack([preprocess(image) for image in images])
            found = model.logit_scale.exp() * model.encode_image(pixels, normalize=True) @ texts.T
        return (found - found.max(dim=1, keepdim=True).values).numpy()

    return logits


def crop(data, place, box, size, resample):
    with Image.open(data.uris[place].as_py()) as image:
        left, top, right, bottom, flipped = box
        found = image.convert("RGB").crop((left, top, right, bottom)).resize((size, size), resample)
    return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else found


def test_stored_views_are_encoded_once_and_trained_on_with_their_own_logits(
    run_job, settings, trainings, say, monkeypatch
):
    read = images_read(monkeypatch, lambda uri: uri)
    settings["student"] |= {"teacher_views": 2, "flip": True}
    ended = run_job(settings)
    assert ended.code == 0, ended.err
    assert len(trainings) == 2
    num_pool = len(trainings[0][0])
    assert len(read) == 48 + num_pool + 2 * 48  # encode; views, for both rounds; predict of each
    for data, targets, asked, batch, found in trainings:
        assert targets.teacher_NC.shape == (num_pool, 2, 3)
        assert len(np.unique(data.crops_NK5.reshape(-1, 5), axis=0)) > num_pool  # drawn for each image
        chosen = [data.crops_NK5[i, asked.seeds[i] % 2] for i in range(num_pool)]
        for_teacher = [crop(data, i, box, 24, Image.Resampling.BICUBIC) for i, box in enumerate(chosen)]
        np.testing.assert_allclose(found, say(for_teacher), atol=0.05)
        for i, box in enumerate(chosen):
            expected = np.asarray(crop(data, i, box, 32, Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(batch.items[i].numpy() - expected).max() <= 2
    by_id = [
        {data.ids[i].as_py(): data.crops_NK5[i].tolist() for i in range(num_pool)} for data, *_ in trainings
    ]  # fmt: skip
    assert by_id[0] == by_id[1]  # the same views in every round


@pytest.mark.parametrize("rule", ["zero_shot", "gda"])
def test_an_online_teacher_says_what_its_rule_makes_of_the_crops(run_job, settings, trainings, say, rule):
    settings["rounds"] = 1
    settings["student"] |= {"teacher_views": "online", "flip": True}
    settings["teacher"] |= {"rule": rule}
    ended = run_job(settings)
    assert ended.code == 0, ended.err
    ((_, targets, _, batch, found),) = trainings
    assert batch.for_teacher.shape[1:] == (24, 24, 3)
    expected = say([Image.fromarray(pixels) for pixels in batch.for_teacher.numpy()])
    found = found - found.max(axis=1, keepdims=True)
    if rule == "zero_shot":
        np.testing.assert_allclose(found, expected, atol=0.05)
    else:  # what labels have made of it
        assert np.abs(found - expected).max() > 0.1
        assert len(targets.online.scorer.weights_CD) == 3
