"""The paper's comparison: what to learn from the same flags, from how many, measured alike.

trial.py says what a comparison is carried out on, methods.py what each method learns from a flag,
preferences.py trains on pairs of answers, lab.py trains and keeps results, cells.py puts them in
order, table.py prints. corpus_trial.py is the seed corpus' trial, on a running server; the practice
world has one of its own.
"""
