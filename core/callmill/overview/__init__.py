"""The overview: what batches, APIs and workers do now, as every view of Callmill shows it."""
