"""The mathematics: plain arguments, numpy, torch, FAISS. Imports neither Ray nor anything of ours outside it."""
