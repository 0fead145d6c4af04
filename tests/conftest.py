"""Tests run side by side: one thread each, and a fixed order of float additions."""

import torch

torch.set_num_threads(1)
