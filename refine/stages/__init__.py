"""The stages of a refine run, from flags to a promoted adapter."""
