"""What a run or its network has to say: metrics of classes, predictions, runs side by side."""
