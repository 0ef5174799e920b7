"""Prompt templates: ``{}`` is the class name. Sources: CoOp/PCoreSet (PAPERS.md 2.2) and open_clip (OpenAI's 80)."""

from __future__ import annotations

from collections.abc import Sequence

from raykd.algo.errors import UserError, did_you_mean

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "simple": ("a photo of a {}.",),
    "imagenet_7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "caltech101": ("a photo of a {}.",),
    "dtd": ("{} texture.",),
    "eurosat": ("a centered satellite photo of {}.",),
    "fgvc_aircraft": ("a photo of a {}, a type of aircraft.",),
    "food101": ("a photo of {}, a type of food.",),
    "oxford_flowers": ("a photo of a {}, a type of flower.",),
    "oxford_pets": ("a photo of a {}, a type of pet.",),
    "stanford_cars": ("a photo of a {}.",),
    "sun397": ("a photo of a {}.",),
    "ucf101": ("a photo of a person doing {}.",),
}
OPENAI_80 = "imagenet_80"


def templates(choice: str | Sequence[str]) -> list[str]:
    """The templates of a named set, or the given ones, checked.

    Args:
        choice: A key of :data:`TEMPLATE_SETS`, ``imagenet_80`` (OpenAI's ensemble, from open_clip), or templates.

    Raises:
        ValueError: Unknown set, an empty list, or a template without exactly one ``{}``.
    """
    if choice == OPENAI_80:
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    if isinstance(choice, str):
        if choice not in TEMPLATE_SETS:
            raise UserError(f"unknown template set {choice!r}; {did_you_mean(choice, [*TEMPLATE_SETS, OPENAI_80])}")
        return list(TEMPLATE_SETS[choice])
    if not choice:
        raise UserError("no prompt templates given; expected at least one, such as 'a photo of a {}.'")
    for template in choice:
        if template.count("{}") != 1:
            raise UserError(f"prompt template {template!r} holds {template.count('{}')} of '{{}}'; expected one")
    return list(choice)


def prompts(classes: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Every class in every template, class by class: C * T texts. Underscores in names become spaces.

    Example:
        >>> prompts(["cat", "hot_dog"], ["a photo of a {}.", "art of the {}."])
        ['a photo of a cat.', 'art of the cat.', 'a photo of a hot dog.', 'art of the hot dog.']
    """
    return [template.replace("{}", name.replace("_", " ")) for name in classes for template in chosen]
