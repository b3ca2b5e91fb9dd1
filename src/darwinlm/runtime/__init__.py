"""What every room stands on and what knows nothing of models: files, seeds, device, progress, the run directory."""
