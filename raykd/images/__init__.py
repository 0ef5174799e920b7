"""From where images lie to pixels, or why not. Imports neither Ray nor torch: what reads images must start fast."""
