"""What the tasks of `sample.py` share: training images of a model, pictures, and files."""
