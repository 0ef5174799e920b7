"""Train the demo's teacher, a small open_clip model that has never seen a real digit.

    python -m raykd.demo.train_teacher --out raykd/demo/teacher

The bundled teacher is seed 0: 165 s on 2 cores (300 CPU seconds), 84.9 % of scikit-learn's 1,797 digits zero-shot,
expected calibration error 0.05. Seed 1 has 86.8 %.
It learns from letters and digits that `glyphs` draws, with captions such as "a photo of the digit seven.". The folder
loads through `open_clip.create_model_and_transforms("local-dir:DIR")` like any other open_clip model. Real digits serve
only for the scores that are logged at the end.

Shape letters: B pictures of a batch, C classes, M captions of a batch, N glyphs, T tokens, S pixels, D embedding.
"""

import argparse
import io
import json
import logging
import math
import string
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save as to_bytes

from raykd.demo import CLASSES, TEMPLATES, digits, glyphs

log = logging.getLogger("raykd.demo")

TOWER_SIZE = 48  # a ModifiedResNet halves the resolution five times; 32 pixels would leave it too little
GREY = 0.5  # mean and standard deviation that open_clip normalizes with, in every channel
CONTEXT_LENGTH = 16
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": TOWER_SIZE, "layers": [1, 1, 1, 1], "width": 12, "head_width": 24},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [GREY] * 3, "std": [GREY] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}

# Class names and captions of training. Classes are the ten digits, then the letters whatever their case: open_clip's
# tokenizer folds case too.
CLASS_NAMES = [
    *[[f"digit {w}", f"digit {i}", f"number {w}", f"number {i}", w, str(i)] for i, w in enumerate(CLASSES)],
    *[[f"letter {char}", f"character {char}"] for char in string.ascii_lowercase],
]
CAPTIONS = (
    "{}", "the {}", "a photo of the {}", "a photo of a {}", "an image of the {}", "a picture of the {}",
    "a handwritten {}", "a drawing of the {}", "a blurry photo of the {}", "a low resolution image of the {}",
    "a scan of the {}",
)  # fmt: skip

BATCH_SIZE = 256
PEAK_LR = 2e-3
CAPTIONS_PER_CLASS = 3  # of every class of a batch
DIGIT_SHARE = 0.55  # of the pictures; the others are letters
PEN_SHARE = 0.6  # of the digits; the others are from fonts
PEN_DIGITS = 400  # drawings of every digit


def train_clip(num_steps: int, seed: int, num_threads: int) -> open_clip.CLIP:
    """The teacher, trained on the CPU in some minutes.

    The same arguments on the same machine with the same torch and matplotlib give the same weights.

    Args:
        num_steps: Optimizer steps, with a linear warm-up and a cosine decay.
        seed: Seeds the weights, the drawings and the batches.
        num_threads: CPU threads. Another number may change the last bits of a sum, and from there the teacher.

    Returns:
        The model in evaluation mode, float32.
    """
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    glyphs_N1SS, label_N, weight_N = _glyph_bank(seed)
    tokens_C = [_tokenize(names) for names in CLASS_NAMES]

    model = open_clip.CLIP(**MODEL).train()
    params = list(model.parameters())
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, num_steps))

    start_s = time.perf_counter()
    for step in range(1, num_steps + 1):
        pick_B = torch.multinomial(weight_N, BATCH_SIZE, replacement=True, generator=generator)
        images_B3SS = _to_model(glyphs.distort(glyphs_N1SS[pick_B], digits.IMAGE_SIZE, generator))
        # A few captions of each class stand for the captions of all of its pictures.
        label_B = label_N[pick_B]
        label_M = label_B.unique().repeat_interleave(CAPTIONS_PER_CLASS)
        texts_MT = torch.stack([_draw(tokens_C[label], generator) for label in label_M])
        image_BD, text_MD, logit_scale = model(images_B3SS, texts_MT)
        loss = _contrastive_loss(logit_scale * image_BD @ text_MD.T, label_B, label_M)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            seconds = time.perf_counter() - start_s
            log.info("step %d of %d: loss %.3f, %.0f s", step, num_steps, loss.item(), seconds)
    return model.eval()


def _glyph_bank(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All glyphs, float [N, 1, S, S], their classes, int [N], and the chance of each to be drawn, float [N]."""
    chars = string.digits + string.ascii_letters
    classes = string.digits + string.ascii_lowercase
    font_N1SS = glyphs.font_glyphs(chars)
    font_label_N = torch.tensor([classes.index(char) for char in chars.lower()]).repeat(len(glyphs.FONTS))
    pen_N1SS = glyphs.pen_glyphs(PEN_DIGITS, np.random.default_rng(seed))
    pen_label_N = torch.arange(len(CLASSES)).repeat_interleave(PEN_DIGITS)

    label_N = torch.cat([font_label_N, pen_label_N])
    letter_N = label_N >= len(CLASSES)
    pen_N = torch.arange(len(label_N)) >= len(font_label_N)
    weight_N = torch.zeros(len(label_N))
    weight_N[letter_N] = (1 - DIGIT_SHARE) / letter_N.sum()
    weight_N[pen_N] = DIGIT_SHARE * PEN_SHARE / pen_N.sum()
    weight_N[~letter_N & ~pen_N] = DIGIT_SHARE * (1 - PEN_SHARE) / (~letter_N & ~pen_N).sum()
    return torch.cat([font_N1SS, pen_N1SS]), label_N, weight_N


def _tokenize(names: list[str]) -> torch.Tensor:
    """Every caption of a class, with and without a full stop: int [M, T]."""
    texts = [caption.format(name) + stop for caption in CAPTIONS for name in names for stop in ("", ".")]
    return open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)(texts)


def _draw(tokens_MT: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return tokens_MT[torch.randint(len(tokens_MT), (), generator=generator)]


def _to_model(images_B1SS: torch.Tensor) -> torch.Tensor:
    """What open_clip's preprocessing makes of a 32x32 picture, here for a batch."""
    grey = (glyphs.enlarge(images_B1SS, TOWER_SIZE) - GREY) / GREY
    return grey.expand(-1, 3, -1, -1)


def _lr_factor(step: int, num_steps: int) -> float:
    """Linear warm-up over 100 steps times a cosine decay to 2 %."""
    return min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))


def _contrastive_loss(logits_BM: torch.Tensor, label_B: torch.Tensor, label_M: torch.Tensor) -> torch.Tensor:
    """CLIP's loss, but a caption is right for every picture of its class; CLIP has one picture a caption."""
    same_BM = (label_B[:, None] == label_M).float()
    image_loss = F.cross_entropy(logits_BM, same_BM / same_BM.sum(1, keepdim=True))
    text_loss = F.cross_entropy(logits_BM.T, same_BM.T / same_BM.T.sum(1, keepdim=True))
    return (image_loss + text_loss) / 2


def save(model: open_clip.CLIP, folder: Path) -> None:
    """Write the model in float16 as a folder that open_clip loads; words never trained are zero, to compress well."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    trained = torch.cat([_tokenize(names) for names in CLASS_NAMES]).unique()
    embedding = torch.zeros_like(state["token_embedding.weight"])
    embedding[trained] = state["token_embedding.weight"][trained]
    state["token_embedding.weight"] = embedding
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_model.safetensors").write_bytes(to_bytes(state))
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def zero_shot(folder: Path, pngs: list[bytes]) -> np.ndarray:
    """A teacher's probabilities of `CLASSES` for the pictures, float [N, 10], by open_clip's ordinary path."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    classifier_DC = open_clip.build_zero_shot_classifier(model.eval(), tokenizer, CLASSES, TEMPLATES)
    images_N3SS = torch.stack([preprocess(Image.open(io.BytesIO(png))) for png in pngs])
    image_ND = model.encode_image(images_N3SS, normalize=True)
    return (model.logit_scale.exp() * image_ND @ classifier_DC).softmax(1).numpy()


def main() -> None:
    """Train, save, and log the scores on real digits."""
    parser = argparse.ArgumentParser(description="Train the demo's teacher.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the configuration and the weights")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)

    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    save(train_clip(args.steps, args.seed, args.threads), args.out)
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    log.info("teacher in %s: %.0f s, %.0f CPU s", args.out, wall_s, cpu_s)
    report(args.out)


def report(folder: Path) -> None:
    """Log a teacher's zero-shot scores on all of the real digits."""
    pool = digits.pool_table()
    probs_NC = zero_shot(folder, pool["image"].to_pylist())
    label_N = np.array([CLASSES.index(label) for label in pool["label"].to_pylist()])
    predicted_N = probs_NC.argmax(1)
    accuracy, confidence = (predicted_N == label_N).mean(), probs_NC.max(1).mean()
    log.info("real digits: accuracy %.4f, mean confidence %.4f", accuracy, confidence)
    confusion_CC = np.zeros((10, 10), int)
    np.add.at(confusion_CC, (label_N, predicted_N), 1)
    log.info("confusion, a row for each true digit:\n%s", confusion_CC)


if __name__ == "__main__":
    main()
