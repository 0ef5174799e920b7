import pytest


@pytest.fixture
def no_image_is_read(monkeypatch):
    """Any attempt to read an image, here or in a worker of this process' making, is an error."""
    from raykd.images.stored import ImageReader
    from raykd.stages import map_images

    def read(*_):
        pytest.fail("an image was read")

    monkeypatch.setattr(ImageReader, "read", read)
    monkeypatch.setattr(map_images, "run", read)
