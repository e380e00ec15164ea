"""The stages, a pipeline each."""
