"""From the configuration to the parts: model, losses and data take plain arguments."""
