"""What to label next: exact, distributed selection. numpy and FAISS; no file, no Ray."""
