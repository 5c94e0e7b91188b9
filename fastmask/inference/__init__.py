"""Prediction with a model made ready once: from images in files, memory or streams to detections on the host."""
