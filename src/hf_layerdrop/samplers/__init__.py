"""Rates, schedules, draws and choices of layers: numbers in, masks out, without torch."""
