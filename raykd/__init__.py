"""Active learning with a vision-language teacher, distributed with Ray.

ActiveKD / PCoreSet (arXiv 2506.00910) picks what to label; DHO (arXiv 2505.07675) trains the small student.
"""

__version__ = "0.1.0"
