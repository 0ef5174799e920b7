"""The models: the teacher (any open_clip model) and the student. Torch, no Ray."""
