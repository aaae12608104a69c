"""What the command lines of train.py and sample.py need beyond the method itself."""
