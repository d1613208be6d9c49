"""Background work: runs of the refine loop, and the deletion of old flags."""
