"""The practice world's part of the comparison in refine/compare: flags.py draws the flags,
figures.py measures by the exact truth, trial.py puts them together. No server: it runs in
transformers.
"""
