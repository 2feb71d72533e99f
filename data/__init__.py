"""Image data sets, and batches of them on the training device."""
