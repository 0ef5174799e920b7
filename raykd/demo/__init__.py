"""The embedded demo: a real small pool and a real small teacher, with no download.

`digits` writes the pool, `teacher/` holds an open_clip model, `train_teacher` makes that model again.
"""

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the digit {}.", "a handwritten digit {}.", "an image of the digit {}.", "the digit {}.")
POOL = "demo:digits"  # as a source's path; `digits.materialise` makes a file of it
