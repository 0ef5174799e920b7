"""What the teacher is asked of each class: its name, or texts of its own, in every template; and whole descriptions.

In a template ``{}`` is the text. Sources of the sets: CoOp/PCoreSet (PAPERS.md 2.2) and open_clip (OpenAI's 80).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


# ---------------------------------------------------------------- classes and their texts


@dataclass(frozen=True)
class ClassTexts:
    """What stands for a class instead of its name.

    Args:
        texts: Go into every template; None: the name does.
        descriptions: Whole prompts, taken as they are.
    """

    texts: tuple[str, ...] | None = None
    descriptions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != ClassTexts()

    def plain(self) -> dict[str, list[str] | None]:
        """As JSON has it."""
        return {"texts": None if self.texts is None else [*self.texts], "descriptions": [*self.descriptions]}

    def of(self, name: str) -> tuple[str, ...]:
        """The texts that go into templates; underscores become spaces."""
        return tuple(text.replace("_", " ") for text in (self.texts if self.texts is not None else (name,)))

    def joined(self, other: ClassTexts) -> ClassTexts:
        """Those of a class that two have become."""
        texts = None if self.texts is None and other.texts is None else (*(self.texts or ()), *(other.texts or ()))
        return ClassTexts(texts, (*self.descriptions, *other.descriptions))


def prompts(
    classes: Sequence[str], chosen: Sequence[str], own: Mapping[str, ClassTexts] | None = None
) -> list[list[str]]:
    """The prompts of each class: its texts in every template, then its descriptions.

    Args:
        classes: Names, which are the texts of the classes that have none of their own.
        chosen: Templates.
        own: The texts of classes that have some.

    Example:
        >>> own = {"pet": ClassTexts(("cat", "dog"), ("an animal that lives with people.",))}
        >>> prompts(["hot_dog", "pet"], ["a photo of a {}."], own)
        [['a photo of a hot dog.'],
         ['a photo of a cat.', 'a photo of a dog.', 'an animal that lives with people.']]
    """
    found = []
    for name in classes:
        texts = (own or {}).get(name, ClassTexts())
        filled = [template.replace("{}", text) for text in texts.of(name) for template in chosen]
        found.append([*filled, *texts.descriptions])
    return found


def classes_of(given: Any) -> dict[str, ClassTexts]:
    """The classes that plain data names (of YAML, JSON or a config), in order, with their texts.

    A list of names, or of ``{name: cat, texts: [...], descriptions: [...]}``; a mapping from names to texts (one, a
    list, or ``{texts: [...], descriptions: [...]}``; nothing: the name); one from numbers, 0 to the last, to names, as
    ``id2label`` has it; or YOLO's data file, whose ``names`` are taken.

    Raises:
        UserError: It is something else, or a name is there more than once.

    Example:
        >>> classes_of({"cat": ["tabby", "tomcat"], "dog": None})
        {'cat': ClassTexts(texts=('tabby', 'tomcat'), descriptions=()), 'dog': ClassTexts(texts=None, descriptions=())}
        >>> list(classes_of({"1": "dog", "0": "cat"}))
        ['cat', 'dog']
    """
    if isinstance(given, Mapping) and isinstance(given.get("names"), (list, dict)) and {"train", "val"} & given.keys():
        given = given["names"]
    pairs = list(_entries(given))
    if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise UserError(f"{', '.join(map(repr, repeated[:5]))} is there more than once")
    return dict(pairs)


def _entries(given: Any) -> Iterator[tuple[str, ClassTexts]]:
    if isinstance(given, Mapping):
        numbers = {str(key): value for key, value in given.items()}
        if set(numbers) == set(map(str, range(len(given)))) and all(isinstance(name, str) for name in given.values()):
            given = [numbers[str(number)] for number in range(len(given))]
        else:
            given = [{name: texts} for name, texts in given.items()]
    if not isinstance(given, (list, tuple)):
        raise UserError(f"{type(given).__name__} ({given!r:.60}); expected names, or a mapping from names to texts")
    for number, entry in enumerate(given):
        where = f"entry {number}"
        if isinstance(entry, Mapping) and "name" in entry:
            yield _name(entry["name"], where), _texts({key: entry[key] for key in entry if key != "name"}, where)
        elif isinstance(entry, Mapping) and len(entry) == 1:
            ((name, texts),) = entry.items()
            name = _name(name, where)
            yield name, _texts(texts, repr(name))
        else:
            yield _name(entry, where), ClassTexts()


def _name(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        hint = " (YAML reads yes, no, on, off, true and false so: put quotes around them)" * isinstance(value, bool)
        raise UserError(f"{where} is {value!r:.60}; expected a name{hint}")
    return value.strip()


def _texts(value: Any, where: str) -> ClassTexts:
    """What is written beside a name."""
    if value is None or value == [] or value == {}:
        return ClassTexts()
    if not isinstance(value, Mapping):
        return ClassTexts(_strings(value, where))
    called = {"synonyms": "texts", "prompts": "descriptions"}
    found: dict[str, tuple[str, ...]] = {}
    for key, texts in value.items():
        kind = called.get(key, key)
        if kind not in ("texts", "descriptions") or kind in found:
            known = ("name", "texts", "descriptions")
            raise UserError(f"{where} has the key {key!r}; {did_you_mean(str(key), known)}")
        found[kind] = _strings(texts, where)
    if found.get("texts") == () and not found.get("descriptions"):
        raise UserError(f"{where} has neither texts nor descriptions; leave both out to ask for the name")
    return ClassTexts(**found)


def _strings(value: Any, where: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(text, str) and text.strip() for text in values):
        raise UserError(f"{where} has {value!r:.60}; expected a text, or a list of texts, none of them empty")
    return tuple(dict.fromkeys(text.strip() for text in values))


def check_apart(classes: Mapping[str, ClassTexts]) -> None:
    """Whether the classes differ in more than case, blanks, underscores and the way letters are composed.

    Most tokenizers see no case, so the teacher would score such classes alike.

    Raises:
        UserError: Two do not; names both.
    """
    first: dict[tuple[str, ...], str] = {}
    for name, texts in classes.items():
        other = first.setdefault(tuple(map(_loose_text, (*texts.of(name), "", *texts.descriptions))), name)
        if other != name:
            raise UserError(
                f"{other!r} and {name!r} differ in nothing that the teacher sees (case, blanks, underscores do not "
                f"count); keep one, or give them texts that tell them apart, such as {{{other}: [...], {name}: [...]}}"
            )


def _loose_text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
