"""The files of a run, by what is in them."""

CONFIG, CHECKPOINT, RESULTS, MODEL, CURVES = "config.json", "checkpoint.pt", "results.csv", "model.pt", "curves.png"
PREVIOUS, DAMAGED = "checkpoint.previous.pt", "checkpoint.damaged.pt"
FILES = (CONFIG, CHECKPOINT, PREVIOUS, RESULTS, MODEL, CURVES)
