"""Teachers that learn from a few labels: image features, class texts and labels in, a scorer out. No image is read.

Every rule adds what it has learned from labels to what the texts say::

    logits = (texts + strength * learned) / temperature

but CLAP, which moves the texts themselves.

No validation set is assumed. Strength, temperature, and what else a rule leaves open are those under which the labels
are likeliest when each is scored by a teacher that has not seen it: leave-one-out, by an exact identity for kernel
ridge and by exact downdates for GDA; five folds for what is trained by steps. In active learning labels are lopsided,
so a class without any is the normal case: its text stands in for its images, moved by the mean gap between texts and
images; CLAP holds it to its text as strongly as the others.

Begin with rules.py, which has them all; support.py is what goes in, scorer.py what comes out, honest.py how the numbers
are found that a rule leaves open. stat_a.py lets the pool itself refine any of them. Features and texts are directions:
rows of length 1. A fit is float64, scoring float32.
"""
