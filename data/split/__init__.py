"""python -m data.split: divides a data set into training, validation and test."""
