"""Training batches as pure functions of the data set, the seed and the samples seen."""
