"""What goes with an exported model: a card for people, the same for programs, and a program that predicts.

The code of the card and of ``predict.py`` is for people who have no raykd: timm, onnxruntime or torch, and Pillow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raykd.models.opened import CARD_FILE, TIMM_CONFIG

README_FILE, PREDICT_FILE = "README.md", "predict.py"
PHOTO = "photo.jpg"  # what the card's example looks at

NEEDS = {"timm": "timm", "onnx": "onnxruntime pillow", "torch": "torch numpy pillow"}

OPENED = """\
def opened(file):  # upright, on white where it is transparent
    image = ImageOps.exif_transpose(Image.open(file))
    assert image.mode[0] not in "IF", f"{file}: more than 8 bits a channel; bring it to 8 first"
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
"""
CROPPED = """\
def pixels_of(file, side={side}):  # short side to {side}, then the middle
    image = opened(file)
    image = image.resize([int(side * each / min(image.size)) for each in image.size], Image.Resampling.{filter})
    left, top = (round((each - side) / 2) for each in image.size)
    return numpy.asarray(image.crop((left, top, left + side, top + side)))[None]
"""
SQUASHED = """\
def pixels_of(file, side={side}):  # to {side} x {side}, whatever its shape
    return numpy.asarray(opened(file).resize((side, side), Image.Resampling.{filter}))[None]
"""
ASKED = {
    "timm": """\
model = timm.create_model({folder}, pretrained=True).eval()
see = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    heads = model(see(opened({file}))[None]).unflatten(1, ({num_heads}, {num_classes})).log_softmax(2)
probs = ((heads + torch.tensor({weights})[:, None].log()).logsumexp(1) / {calibration}).softmax(1)[0].tolist()
""",
    "onnx": """\
model = onnxruntime.InferenceSession({folder})
probs = model.run(None, {{"pixels": pixels_of({file})}})[0][0].tolist()
""",
    "torch": """\
model = torch.export.load({folder}).module()
probs = model(torch.tensor(pixels_of({file})))[0].tolist()
""",
}
IMPORTS = {
    "timm": "import timm, timm.data, torch\nfrom PIL import Image, ImageOps\n",
    "onnx": "import numpy, onnxruntime\nfrom PIL import Image, ImageOps\n",
    "torch": "import numpy, torch\nfrom PIL import Image, ImageOps\n",
}


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """``README.md``, ``card.json`` and ``predict.py``.

    Args:
        folder: Where the model is.
        card: All that is known of it, plain data.
    """
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / PREDICT_FILE).write_text(predict_program(card), "utf-8")
    (folder / README_FILE).write_text(readme(card), "utf-8")


def code(card: dict[str, Any], folder: str, file: str) -> tuple[str, str]:
    """Python that defines what it needs, and that sets ``probs`` of one image.

    Args:
        card: Of the model.
        folder, file: Python expressions: of the weights, or of timm's name of the folder; of the image.
    """
    side, kind = card["preprocess"]["image_size"], card["format"]
    weights, calibration = head_weights(card), card["mixture"]["calibration"]
    values = {
        "folder": folder, "file": file, "side": side, "filter": card["preprocess"]["interpolation"].upper(),
        "num_heads": len(weights), "num_classes": len(card["classes"]), "weights": weights, "calibration": calibration,
    }  # fmt: skip
    crop = "" if kind == "timm" else SQUASHED if is_squashed(card) else CROPPED
    return OPENED + crop.format(**values), ASKED[kind].format(**values)


def is_squashed(card: dict[str, Any]) -> bool:
    """Whether the model sees whole images, squashed (SigLIP's tower under a frozen student), and not their middle."""
    clip = card["preprocess"].get("clip")
    return clip is not None and clip["resize_mode"] == "squash"


def head_weights(card: dict[str, Any]) -> list[float]:
    share = card["mixture"]["ce_weight"]
    return [share, 1 - share] if card["heads"] == "dho" else [1.0]


def predict_program(card: dict[str, Any]) -> str:
    """``predict.py``: image files to a line each, by nothing but the packages of the format."""
    here = "os.path.dirname(os.path.abspath(__file__))"
    kind = card["format"]
    folder = f'f"local-dir:{{{here}}}"' if kind == "timm" else f'os.path.join({here}, "{card["weights"]}")'
    before, each = code(card, folder, "file")
    model, *rest = each.splitlines(keepends=True)
    if kind == "timm":  # the second line, too, is of the model and not of an image
        model += rest.pop(0)
    loop = "".join(f"    {line}" for line in rest)
    return (
        f'"""python predict.py IMAGE ...: the likeliest class, and its probability. Needs: {NEEDS[kind]}."""\n\n'
        f"import json, os, sys\n\n{IMPORTS[kind]}\n{before}\n{model}"
        f'classes = json.load(open(os.path.join({here}, "{CARD_FILE}"), encoding="utf-8"))["classes"]\n'
        f"for file in sys.argv[1:]:\n{loop}"
        '    print(f"{file}\\t{classes[probs.index(max(probs))]}\\t{max(probs):.6f}")\n'
    )


def readme(card: dict[str, Any]) -> str:
    """The card, for people."""
    kind, gate = card["format"], card["gate"]
    preprocess, mixture, run = card["preprocess"], card["mixture"], card["campaign"]
    before, each = code(card, '"local-dir:."' if kind == "timm" else f'"{card["weights"]}"', f'"{PHOTO}"')
    heads = (
        f"two heads: {mixture['ce_weight']:g} of the one that learned from labels, {1 - mixture['ce_weight']:g} of the "
        f"one that learned from the teacher (temperature {mixture['temperature']:g})"
        if card["heads"] == "dho"
        else f"one head ({card['heads']})"
    )
    size, how = f"{preprocess['image_size']} pixels", preprocess["interpolation"]
    seen = f"short side to {size} ({how}), then the square in the middle"
    if is_squashed(card):
        seen = f"squashed to a square of {size} ({how})"
    lines = [
        f"# {card['backbone']}, {len(card['classes'])} classes",
        "",
        f"An image classifier as {FORMAT_WORDS[kind].format(**card)}, exported by raykd. Classes, in the order of the "
        f"probabilities: {listed_in_card(card['classes'])}.",
        "",
        "```python",
        IMPORTS[kind] + before + each + "print(probs)",
        "```",
        "",
        f"In this folder, with `pip install {NEEDS[kind]}` alone. `python {PREDICT_FILE} IMAGE ...` prints the "
        "likeliest class of each.",
        "",
        "| | |",
        "|---|---|",
    ]
    rows = {
        "Input": f"RGB, upright, {seen}; {INPUT_WORDS[kind]}. 8 bits a channel; transparent images on white",
        "Mixture": f"{heads}; calibration temperature {mixture['calibration']:g}",
        **(campaign_rows(run) if run else {"Accuracy": "not known: exported without its campaign"}),
        "Held against the student": f"{gate['num_images']} images {gate['images']}, batches of "
        f"{', '.join(map(str, gate['batches']))}: probabilities differ by {gate['max_difference']:.1g} at most, the "
        f"likeliest class is the same ({gate['num_ties']} ties)",
        "Parameters": f"{card['parameters']:,}",
        "Weights": f"`{card['weights']}`, {card['bytes']:,} bytes, SHA-256 `{card['sha256']}`",
        "Exported with": card_in_words(card["exported_with"]),
    }
    if kind == "onnx":
        rows["ONNX"] = f"opset {card['opset']}, any batch size, by `{card['exporter']}`"
        if card.get("why"):
            rows["ONNX"] += f"; the newer exporter was not taken: {card['why']}"
    started = card["started_from"]
    rows["Licence"] = (
        "of these weights: not stated, the owner's to say. "
        + (f"They started from {started['weights']}, licence: {started['license'] or 'not known'}. " if started else "")
        + "raykd is Apache-2.0"
    )
    lines += [f"| {name} | {cell(text)} |" for name, text in rows.items()]
    return "\n".join(lines) + "\n"


FORMAT_WORDS = {
    "timm": f"a timm model (`{TIMM_CONFIG}` and `{{weights}}`)",
    "onnx": "an ONNX file (`{weights}`), from pixels to probabilities",
    "torch": "a `torch.export` program (`{weights}`), from pixels to probabilities",
}
MEASURED_WORDS = {"test": "labeled test", "audit": "audited pool"}
INPUT_WORDS = {
    "timm": "`timm.data.create_transform` makes that of this folder's configuration",
    "onnx": "`pixels` uint8 [batch, height, width, 3], 0 to 255: mean and deviation are inside",
    "torch": "uint8 [batch, height, width, 3], 0 to 255: mean and deviation are inside",
}


def campaign_rows(run: dict[str, Any]) -> dict[str, str]:
    """What is known from the campaign."""
    accuracy, interval = run["accuracy"], run["interval"]
    measured = "not known: the campaign has no labeled test images and audited none"
    if accuracy is not None:
        within = f", 95 % interval {interval[0]:.1%} to {interval[1]:.1%}" if interval else ""
        images = f"{run['num_measured']:,} {MEASURED_WORDS[run['measured_on']]} images"
        measured = f"{accuracy:.1%}{within}, on {images} of the campaign"
    spent = ", ".join(f"{count:,} for {use}" for use, count in run["labels_spent"].items() if count)
    return {
        "Accuracy": measured,
        "Calibration error (ECE)": "not known" if run["ece"] is None else f"{run['ece']:.1%}",
        "Labels spent": f"{sum(run['labels_spent'].values()):,} ({spent})",
        "Teacher": str(run["teacher"]),
        **({"Prompts": str(run["prompts"])} if run["prompts"] else {}),
        "Data": str(run["data"]),
        "Picked by": f"{run['strategy']}, seed {run['seed']}, round {run['round']}",
        "Trained with": card_in_words(run["trained_with"]),
    }


def card_in_words(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def listed_in_card(classes: list[str], shown: int = 20) -> str:
    text = ", ".join(f"`{name if name.isprintable() else json.dumps(name)}`" for name in classes[:shown])
    return text + (f", ... (all {len(classes)} in {CARD_FILE})" if len(classes) > shown else "")


def cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
