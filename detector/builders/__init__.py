"""Builds the parts from the configuration; model, losses and data take plain arguments."""
