"""Measurements against peers, side by side in one process: ``gruclip bench projection | gru | step | sweep``."""
