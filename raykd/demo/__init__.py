"""The embedded demo: a real small pool and a real small teacher, with no download.

`digits` writes the pool, `teacher/` holds an open_clip model, `train_teacher` makes that model again.
"""
