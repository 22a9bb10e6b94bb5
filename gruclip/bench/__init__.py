"""Measurements, side by side in one process: ``gruclip bench projection | gru | step | stack | sweep``."""
