"""python -m data.split: a data set divided into training, validation and test."""
