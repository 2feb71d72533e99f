"""Image data sets as uint8 tensors, and batches of them made on the training device."""
