"""SHIM."""

import io


class ClipPreprocess:
    def __init__(self, config):
        self.config = config
        s = config["size"]
        self.size = (s, s) if isinstance(s, int) else tuple(s)

    def __call__(self, image):
        from open_clip.transform import PreprocessCfg, image_transform_v2
        from torchvision.transforms import Compose

        if not hasattr(self, "t"):
            self.t = Compose(image_transform_v2(PreprocessCfg(**self.config), is_train=False).transforms[:-2])
        return self.t(image)


def thumbnail(image, size):
    small = max(image.size) <= size
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 80}))
    return buffer.getvalue()
