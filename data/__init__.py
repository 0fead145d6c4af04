"""Data sets: reading, checking, splitting, augmenting, loading."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations checks online for updates on import
