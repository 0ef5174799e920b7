"""What to label next: exact, distributed selection. numpy and FAISS; no file, no Ray."""

import os

# FAISS's threads would spin for a while after each product, on the cores that numpy's BLAS wants for the next one: data
# without structure took twice as long. OpenMP reads this when FAISS is loaded; nobody else's OpenMP is told.
_WAIT = "OMP_WAIT_POLICY"
if _WAIT not in os.environ:
    os.environ[_WAIT] = "passive"
    import faiss  # noqa: F401

    del os.environ[_WAIT]
