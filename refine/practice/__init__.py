"""The practice world: made-up tasks with exact ground truth, and a small model trained on them.

world.py makes requests, oracle.py tells what an answer did, corpus.py makes training examples,
train.py trains the model in `model/`, evaluate.py measures it. `python -m refine.practice --help`.
"""
