"""Work beside requests: runs of the refine loop, and how long flags are kept."""
